// Built-in functions of CUDA C. Included by cuda_emu.h.
#pragma once

// -- barriers, votes, shuffles ----------------------------------------------------------------------------------------

inline void __syncthreads() { emu::barrier(false); }
inline int __syncthreads_or(int value) { return emu::barrier(value != 0) > 0; }
inline int __syncthreads_and(int value) { return emu::barrier(value == 0) == 0; }
inline int __syncthreads_count(int value) { return emu::barrier(value != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu::meet(mask, 0, emu::Meeting::sync); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t* votes = emu::meet(mask, predicate != 0, emu::Meeting::vote);
    unsigned result = 0;
    const unsigned lanes = emu::block_size.x * emu::block_size.y * emu::block_size.z - emu::self().warp * 32;
    for (unsigned lane = 0; lane < 32 && lane < lanes; ++lane)
        if (mask >> lane & 1) result |= unsigned(votes[lane]) << lane;
    return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// A lane outside the mask or the block gives poison; on a GPU its value is undefined.
template <class T>
T emu_shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t* all = emu::meet(mask, bits, emu::Meeting::shuffle);
    const unsigned lanes = emu::block_size.x * emu::block_size.y * emu::block_size.z - emu::self().warp * 32;
    T result;
    std::memset(&result, emu::POISON, sizeof result);
    if ((mask >> source & 1) && unsigned(source) < lanes) std::memcpy(&result, &all[source], sizeof result);
    return result;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = emu::self().lane;
    return emu_shuffle(mask, value, (lane & -width) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flips, int width = 32) {
    const int lane = emu::self().lane, source = lane ^ flips;
    return emu_shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const int lane = emu::self().lane, source = lane - int(by);
    return emu_shuffle(mask, value, source >= (lane & -width) ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const int lane = emu::self().lane, source = lane + int(by);
    return emu_shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}

// ThreadSanitizer does not support fences. This one orders all threads that fence, at least as strongly as a GPU.
inline void __threadfence() {
    static int meeting_point = 0;
    __atomic_fetch_add(&meeting_point, 0, __ATOMIC_SEQ_CST);
}
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

// -- atomics: relaxed, as on a GPU ------------------------------------------------------------------------------------

namespace emu {
template <class T> struct Same { using type = T; };
template <size_t> struct Word;
template <> struct Word<4> { using type = uint32_t; };
template <> struct Word<8> { using type = uint64_t; };
template <class T, class F>
T update(T* at, F next) {
    using W = typename Word<sizeof(T)>::type;
    W* word = reinterpret_cast<W*>(at);
    W seen = __atomic_load_n(word, __ATOMIC_RELAXED), wanted;
    T before;
    do {
        std::memcpy(&before, &seen, sizeof before);
        const T after = next(before);
        std::memcpy(&wanted, &after, sizeof after);
    } while (!__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}
}
#define EMU_ATOMIC(name, expression)                           \
    template <class T>                                         \
    T name(T* at, typename emu::Same<T>::type value) {         \
        return emu::update(at, [value](T old) -> T { return expression; }); \
    }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicSub, old - value)
EMU_ATOMIC(atomicExch, (void(old), value))
EMU_ATOMIC(atomicMin, old < value ? old : value)
EMU_ATOMIC(atomicMax, old > value ? old : value)
EMU_ATOMIC(atomicAnd, old & value)
EMU_ATOMIC(atomicOr, old | value)
EMU_ATOMIC(atomicXor, old ^ value)
template <class T>
T atomicCAS(T* at, typename emu::Same<T>::type expected, typename emu::Same<T>::type value) {
    return emu::update(at, [=](T old) { return old == expected ? value : old; });
}

// -- memory -----------------------------------------------------------------------------------------------------------

template <class T> T __ldg(const T* at) { return *at; }
template <class T> T __ldca(const T* at) { return *at; }
template <class T> T __ldcg(const T* at) { return *at; }
template <class T> T __ldcs(const T* at) { return *at; }
template <class T> T __ldcv(const T* at) { return *at; }
template <class T> void __stwb(T* at, typename emu::Same<T>::type value) { *at = value; }
template <class T> void __stcg(T* at, typename emu::Same<T>::type value) { *at = value; }
template <class T> void __stcs(T* at, typename emu::Same<T>::type value) { *at = value; }
template <class T> void __stwt(T* at, typename emu::Same<T>::type value) { *at = value; }

// -- numbers ----------------------------------------------------------------------------------------------------------

#define EMU_MIN_MAX(T)                                       \
    inline T min(T a, T b) { return a < b ? a : b; }         \
    inline T max(T a, T b) { return a > b ? a : b; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

namespace emu {
template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
// Casts as on a GPU: saturated, NaN is 0.
template <class T>
T clamped(float value, T least, T most) {
    return std::isnan(value) ? T(0) : value <= float(least) ? least : value >= float(most) ? most : T(value);
}
inline int to_int(float value) { return clamped<int>(value, INT32_MIN, INT32_MAX); }
inline unsigned to_unsigned(float value) { return clamped<unsigned>(value, 0, UINT32_MAX); }
}
inline float __int_as_float(int value) { return emu::bits_as<float>(value); }
inline float __uint_as_float(unsigned value) { return emu::bits_as<float>(value); }
inline int __float_as_int(float value) { return emu::bits_as<int>(value); }
inline unsigned __float_as_uint(float value) { return emu::bits_as<unsigned>(value); }
inline int __float2int_rz(float value) { return emu::to_int(truncf(value)); }
inline int __float2int_rn(float value) { return emu::to_int(rintf(value)); }
inline int __float2int_rd(float value) { return emu::to_int(floorf(value)); }
inline int __float2int_ru(float value) { return emu::to_int(ceilf(value)); }
inline unsigned __float2uint_rz(float value) { return emu::to_unsigned(truncf(value)); }
inline unsigned __float2uint_rn(float value) { return emu::to_unsigned(rintf(value)); }
inline unsigned __float2uint_rd(float value) { return emu::to_unsigned(floorf(value)); }
inline unsigned __float2uint_ru(float value) { return emu::to_unsigned(ceilf(value)); }
inline float __int2float_rn(int value) { return float(value); }
inline float __uint2float_rn(unsigned value) { return float(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(unsigned(value)); }
inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll((unsigned long long)value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __brev(unsigned value) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= (value >> bit & 1u) << (31 - bit);
    return result;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> (4 * i), byte = unsigned(bytes >> (8 * (nibble & 7))) & 0xff;
        result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}

// Compiled with -ffp-contract=off, plain arithmetic rounds as these do.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
// Approximate on a GPU, exact here.
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
