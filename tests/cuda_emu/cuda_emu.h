// The parts of CUDA C that our kernels use, for g++ (C++20): an unmodified .cu file is included after this one.
//
// The threads of a block are fibers that switch at barriers and warp functions (schedule_fibers.h), or with EMU_THREADS
// real threads, for ThreadSanitizer (schedule_threads.h). Blocks run one after another.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __launch_bounds__(...)
#define __constant__ static
#define __align__(n) __attribute__((aligned(n)))

// Blocks run one after another, so one copy serves all. The section allows poisoning it before each block.
#define __shared__ static __attribute__((section("emu_shared")))
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emu::dynamic_shared)

#define EMU_VECTORS(T, name, alignment2, alignment4)                                           \
    struct name##1 { T x; };                                                                   \
    struct __align__(alignment2) name##2 { T x, y; };                                          \
    struct name##3 { T x, y, z; };                                                             \
    struct __align__(alignment4) name##4 { T x, y, z, w; };                                    \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                 \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                         \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace emu {
constexpr int WARP_LANES = 32, MAX_THREADS = 1024, MAX_SHARED = 227 * 1024, GUARD = 256;
constexpr unsigned char POISON = 0xCD;

struct Thread {
    uint3 index;
    unsigned linear, warp, lane;
};

inline uint3 block_index;
inline dim3 block_size, grid_size;
alignas(1024) inline unsigned char dynamic_shared[MAX_SHARED + GUARD];

// The operation in which threads of a warp meet; lanes that meet must be in the same one.
enum class Meeting { shuffle, vote, sync };

Thread& self();
// Ends the launch with an error. Does not return.
[[noreturn]] void fail(const char* message);
// Each lane of the mask gives a value and receives those of all; valid until its next meeting.
const uint64_t* meet(unsigned mask, uint64_t value, Meeting kind);
// A barrier of the block; the result is how many threads called it with true.
int barrier(bool flag);
}

#define threadIdx (emu::self().index)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)
constexpr int warpSize = emu::WARP_LANES;

#include "builtins.h"
#ifdef EMU_THREADS
#include "schedule_threads.h"
#else
#include "schedule_fibers.h"
#endif
