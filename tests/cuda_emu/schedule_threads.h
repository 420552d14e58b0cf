// Threads of a block as real threads, so that ThreadSanitizer detects unordered accesses. Included by cuda_emu.h.
//
// Memory is ordered only as CUDA guarantees: by barriers and __syncwarp(), but not by shuffles and votes. So the latter
// are relaxed atomics; the hardware fences around them are assembler, which the sanitizer does not see. For the same
// reason, waiting is a bare futex call: a library call would order memory itself.
#pragma once
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace emu {
inline void hardware_fence() {
#if defined(__x86_64__)
    asm volatile("mfence" ::: "memory");
#elif defined(__aarch64__)
    asm volatile("dmb ish" ::: "memory");
#endif
}

inline void wait_while(unsigned* word, unsigned value, int order) {
    while (__atomic_load_n(word, __ATOMIC_RELAXED) == value)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    if (order != __ATOMIC_RELAXED) (void)__atomic_load_n(word, __ATOMIC_ACQUIRE);
    hardware_fence();
}

inline void wake_all(unsigned* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }

constexpr const char* DIVERGENCE = "barrier divergence: some threads have ended while others wait at __syncthreads()";

// Values alternate between two arrays: when a lane arrives at the next meeting, others may still read those of this one.
struct Gathering {
    unsigned arrived, generation;
    uint64_t values[2][WARP_LANES];
};

inline thread_local Thread thread_self;
inline thread_local uint64_t lane_values[WARP_LANES];
inline Gathering gatherings[MAX_THREADS / WARP_LANES][WARP_LANES + 1];  // by the lowest lane; the last for all lanes
inline int num_threads;
inline unsigned num_arrived, barrier_generation, num_ended;
inline int flags_raised[2];
inline unsigned seed = 0;

inline Thread& self() { return thread_self; }

[[noreturn]] inline void fail(const char* message) {
    std::fprintf(stderr, "cuda_emu: %s\n", message);
    std::_Exit(3);
}

inline const uint64_t* meet(unsigned mask, uint64_t value, Meeting kind) {
    const Thread& me = thread_self;
    const int lanes = num_threads - int(me.warp) * WARP_LANES;
    if (lanes < WARP_LANES) mask &= (1u << lanes) - 1u;
    if (!(mask >> me.lane & 1)) fail("a lane is in a warp function whose mask leaves it out");
    const bool orders = kind == Meeting::sync;
    Gathering& here = gatherings[me.warp][mask == ~0u ? WARP_LANES : __builtin_ctz(mask)];
    const unsigned generation = __atomic_load_n(&here.generation, __ATOMIC_RELAXED), bit = 1u << me.lane;
    uint64_t* values = here.values[generation % 2];
    __atomic_store_n(&values[me.lane], value, __ATOMIC_RELAXED);
    hardware_fence();
    const unsigned arrived = orders ? __atomic_or_fetch(&here.arrived, bit, __ATOMIC_ACQ_REL)
                                    : __atomic_or_fetch(&here.arrived, bit, __ATOMIC_RELAXED);
    if (arrived == mask) {
        __atomic_store_n(&here.arrived, 0, __ATOMIC_RELAXED);
        hardware_fence();
        if (orders)
            __atomic_store_n(&here.generation, generation + 1, __ATOMIC_RELEASE);
        else
            __atomic_store_n(&here.generation, generation + 1, __ATOMIC_RELAXED);
        wake_all(&here.generation);
    } else {
        wait_while(&here.generation, generation, orders ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
    }
    for (int lane = 0; lane < WARP_LANES; ++lane) lane_values[lane] = __atomic_load_n(&values[lane], __ATOMIC_RELAXED);
    return lane_values;
}

inline int barrier(bool flag) {
    const unsigned generation = __atomic_load_n(&barrier_generation, __ATOMIC_RELAXED);
    int* flags = &flags_raised[generation % 2];
    if (flag) __atomic_fetch_add(flags, 1, __ATOMIC_RELAXED);
    const unsigned arrived = __atomic_add_fetch(&num_arrived, 1, __ATOMIC_ACQ_REL);
    // A slow thread may look only after this barrier is complete and others have ended; that is not a divergence.
    if (__atomic_load_n(&num_ended, __ATOMIC_RELAXED) != 0 &&
        __atomic_load_n(&barrier_generation, __ATOMIC_RELAXED) == generation)
        fail(DIVERGENCE);
    if (arrived == unsigned(num_threads)) {
        __atomic_store_n(&num_arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&flags_raised[(generation + 1) % 2], 0, __ATOMIC_RELAXED);
        __atomic_store_n(&barrier_generation, generation + 1, __ATOMIC_RELEASE);
        wake_all(&barrier_generation);
    } else {
        wait_while(&barrier_generation, generation, __ATOMIC_ACQUIRE);
    }
    return __atomic_load_n(flags, __ATOMIC_RELAXED);
}

struct Grid {
    const unsigned* blocks;
    unsigned count;
    void (*kernel)();
    void (*before)(unsigned);
    const char* (*after)();
};
inline Grid grid;
// Two, because the sanitizer orders a thread that leaves a barrier late after all that arrived meanwhile.
inline pthread_barrier_t block_begins, block_ends;

inline void* run_thread(void* argument) {
    const unsigned n = unsigned(reinterpret_cast<uintptr_t>(argument)), x = block_size.x, y = block_size.y;
    thread_self = {{n % x, n / x % y, n / x / y}, n, n / WARP_LANES, n % WARP_LANES};
    for (unsigned i = 0; i < grid.count; ++i) {
        if (n == 0) {
            grid.before(grid.blocks[i]);
            __atomic_store_n(&num_ended, 0, __ATOMIC_RELAXED);
        }
        pthread_barrier_wait(&block_begins);
        grid.kernel();
        __atomic_add_fetch(&num_ended, 1, __ATOMIC_RELAXED);
        if (__atomic_load_n(&num_arrived, __ATOMIC_RELAXED) != 0) fail(DIVERGENCE);
        pthread_barrier_wait(&block_ends);
        if (n == 0)
            if (const char* message = grid.after(); message != nullptr) fail(message);
    }
    return nullptr;
}

inline bool run_grid(const unsigned* blocks, unsigned count, void (*kernel)(), void (*before)(unsigned),
                     const char* (*after)()) {
    static pthread_t threads[MAX_THREADS];
    num_threads = block_size.x * block_size.y * block_size.z;
    grid = {blocks, count, kernel, before, after};
    pthread_barrier_init(&block_begins, nullptr, num_threads);
    pthread_barrier_init(&block_ends, nullptr, num_threads);
    for (int i = 0; i < num_threads; ++i)
        if (pthread_create(&threads[i], nullptr, run_thread, reinterpret_cast<void*>(uintptr_t(i))) != 0)
            fail("cannot make a thread");
    for (int i = 0; i < num_threads; ++i) pthread_join(threads[i], nullptr);
    pthread_barrier_destroy(&block_begins);
    pthread_barrier_destroy(&block_ends);
    return true;
}
}
