// The C entries of a compiled kernel source, after the source: EMU_ENTRIES(EMU_KERNEL(name) ...) names its kernels.
//
// emu_launch() takes the arguments of cuLaunchKernel() and may be called from any thread. Errors are reported, except
// with EMU_THREADS, where the process exits with code 3.
#pragma once
#include <pthread.h>

#include <tuple>
#include <type_traits>
#include <utility>

extern "C" {
// Ends of the section of all __shared__ variables; absent when there are none.
extern unsigned char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emu {
struct Kernel {
    const char* name;
    void (*load)(void** params);  // keeps the arguments for `run`
    void (*run)();
    int (*parameters)(unsigned* sizes, int capacity);
};

template <auto F>
struct Call;
template <class... A, void (*F)(A...)>
struct Call<F> {
    static inline std::tuple<std::remove_cv_t<A>...> arguments;
    template <size_t... I>
    static void load_each(void** params, std::index_sequence<I...>) {
        (std::memcpy(&std::get<I>(arguments), params[I], sizeof(std::get<I>(arguments))), ...);
    }
    static void load(void** params) { load_each(params, std::index_sequence_for<A...>{}); }
    static void run() { std::apply(F, arguments); }
    static int parameters(unsigned* sizes, int capacity) {
        const unsigned all[] = {unsigned(sizeof(std::remove_cv_t<A>))..., 0};
        for (int i = 0; i < int(sizeof...(A)) && i < capacity; ++i) sizes[i] = all[i];
        return int(sizeof...(A));
    }
};

inline unsigned shared_bytes;

inline void poison_shared(unsigned block) {
    block_index = {block % grid_size.x, block / grid_size.x % grid_size.y, block / grid_size.x / grid_size.y};
    std::memset(dynamic_shared, POISON, shared_bytes + GUARD);
    if (__start_emu_shared != nullptr)
        std::memset(__start_emu_shared, POISON, size_t(__stop_emu_shared - __start_emu_shared));
}

inline const char* check_shared() {
    for (unsigned i = 0; i < GUARD; ++i)
        if (dynamic_shared[shared_bytes + i] != POISON) return "a write behind the dynamic shared memory of the block";
    return nullptr;
}

inline const char* error = "";
inline int refuse(const char* message) {
    error = message;
    return 2;
}

inline int launch(const Kernel& kernel, const unsigned* grid, const unsigned* block, unsigned bytes, void** params) {
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2], blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    if (threads < 1 || threads > MAX_THREADS) return refuse("a block has 1 to 1024 threads");
    if (blocks < 1 || blocks > (1u << 26)) return refuse("an empty grid, or one too large for the emulator");
    if (bytes > MAX_SHARED) return refuse("more dynamic shared memory than any GPU has");
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    shared_bytes = bytes;
    kernel.load(params);
    unsigned* order = static_cast<unsigned*>(std::malloc(blocks * sizeof(unsigned)));
    uint64_t state = seed;
    for (unsigned i = 0; i < blocks; ++i) {
        order[i] = i;
        if (seed == 0) continue;
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i], order[(state >> 33) % (i + 1)]);
    }
    const bool done = run_grid(order, unsigned(blocks), kernel.run, poison_shared, check_shared);
    std::free(order);
#ifndef EMU_THREADS
    if (!done) return refuse(failure);
#endif
    return done ? 0 : 2;
}
}

#define EMU_KERNEL(name) {#name, emu::Call<&name>::load, emu::Call<&name>::run, emu::Call<&name>::parameters},
#define EMU_ENTRIES(...)                                                                                       \
    static const emu::Kernel emu_kernels[] = {__VA_ARGS__};                                                    \
    static pthread_mutex_t emu_mutex = PTHREAD_MUTEX_INITIALIZER;                                              \
    static const emu::Kernel* emu_find(const char* name) {                                                     \
        for (const emu::Kernel& kernel : emu_kernels)                                                          \
            if (std::strcmp(kernel.name, name) == 0) return &kernel;                                           \
        return nullptr;                                                                                        \
    }                                                                                                          \
    extern "C" {                                                                                               \
    /* 0: done, 1: no kernel of that name, 2: failed, see emu_error() */                                       \
    EMU_VISIBLE int emu_launch(const char* kernel, const unsigned grid[3], const unsigned block[3],            \
                               unsigned shared_bytes, void** params) {                                         \
        const emu::Kernel* entry = emu_find(kernel);                                                           \
        if (entry == nullptr) return 1;                                                                        \
        pthread_mutex_lock(&emu_mutex);                                                                        \
        const int code = emu::launch(*entry, grid, block, shared_bytes, params);                               \
        pthread_mutex_unlock(&emu_mutex);                                                                      \
        return code;                                                                                           \
    }                                                                                                          \
    /* the number of a kernel's parameters, and the bytes of each; -1: no kernel of that name */               \
    EMU_VISIBLE int emu_parameters(const char* kernel, unsigned* bytes, int capacity) {                        \
        const emu::Kernel* entry = emu_find(kernel);                                                           \
        return entry == nullptr ? -1 : entry->parameters(bytes, capacity);                                     \
    }                                                                                                          \
    /* 0: threads and blocks in their order, else an order of each number's own */                             \
    EMU_VISIBLE void emu_seed(unsigned number) { emu::seed = number; }                                         \
    EMU_VISIBLE const char* emu_error(void) { return emu::error; }                                             \
    }
#define EMU_VISIBLE __attribute__((visibility("default")))
