// Threads of a block as fibers of one thread. Included by cuda_emu.h.
//
// A fiber runs until it waits: at a barrier for its block, in a warp function for the lanes of the mask. The seed
// chooses which of the ready ones runs next: 0 in order; otherwise one of three strategies, so that a missing barrier
// shows in some order. If none can run and some have not ended, the block is stuck, which is an error here even if
// hardware might continue.
#pragma once

#if defined(__x86_64__)
// Saves the registers that the calling convention preserves, and exchanges the stacks.
extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** save, void* to);
asm(R"(
    .text
    .globl emu_switch
    .hidden emu_switch
    .type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch, .-emu_switch
)");
#else
#include <ucontext.h>
#endif

namespace emu {
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif

#if defined(__x86_64__)
struct Context {
    void* stack_pointer;
    void prepare(char* stack, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + STACK);
        *--top = nullptr;  // in place of a return address
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;  // the saved registers
        stack_pointer = top;
    }
    void switch_to(Context& to) { emu_switch(&stack_pointer, to.stack_pointer); }
};
#else
struct Context {
    ucontext_t context;
    void prepare(char* stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void switch_to(Context& to) { swapcontext(&context, &to.context); }
};
#endif

enum class State { ready, at_barrier, in_warp, ended };

struct Fiber {
    Context context;
    Thread thread;
    State state;
    uint64_t met[WARP_LANES];  // the values of the last meeting
};

// The lanes of one mask on their way to a meeting, indexed by the lowest lane of the mask.
struct Gathering {
    unsigned mask, arrived;
    Meeting kind;
    uint64_t values[WARP_LANES];
};

inline Fiber fibers[MAX_THREADS];
inline Fiber* current = nullptr;
inline Context scheduler;
inline char* stacks = nullptr;
inline void (*body)() = nullptr;
inline const char* failure = nullptr;
inline char failure_text[512];
inline Gathering gatherings[MAX_THREADS / WARP_LANES][WARP_LANES];
inline int num_threads, num_waiting, num_ended, flags_raised, flags_result[2], barrier_turn;

inline int queue[MAX_THREADS], queue_start, queue_size;  // the ready fibers, a ring
inline unsigned seed = 0;
inline uint32_t random_state;

inline uint32_t random_below(uint32_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return uint32_t(uint64_t(random_state) * limit >> 32);
}

inline void make_ready(int number) {
    fibers[number].state = State::ready;
    queue[(queue_start + queue_size++) % MAX_THREADS] = number;
}

inline int next_ready() {
    const bool newest_first = seed != 0 && seed % 4 == 1, oldest_first = seed == 0 || seed % 4 == 2;
    if (oldest_first) {
        const int number = queue[queue_start];
        queue_start = (queue_start + 1) % MAX_THREADS;
        --queue_size;
        return number;
    }
    const int last = (queue_start + --queue_size) % MAX_THREADS;
    if (!newest_first) {
        const int chosen = (queue_start + random_below(queue_size + 1)) % MAX_THREADS;
        const int number = queue[chosen];
        queue[chosen] = queue[last];
        return number;
    }
    return queue[last];
}

inline Thread& self() { return current->thread; }

inline void wait(State state) {
    current->state = state;
    current->context.switch_to(scheduler);
}

[[noreturn]] inline void fail(const char* message) {
    failure = message;
    current->context.switch_to(scheduler);
    __builtin_unreachable();
}

inline const uint64_t* meet(unsigned mask, uint64_t value, Meeting kind) {
    const Thread& me = current->thread;
    const int lanes = num_threads - int(me.warp) * WARP_LANES;
    if (lanes < WARP_LANES) mask &= (1u << lanes) - 1u;
    if (!(mask >> me.lane & 1)) fail("a lane is in a warp function whose mask leaves it out");
    Gathering& here = gatherings[me.warp][__builtin_ctz(mask)];
    if (here.arrived != 0 && (here.mask != mask || here.kind != kind))
        fail("lanes of a warp are in different warp functions");
    here.mask = mask;
    here.kind = kind;
    here.values[me.lane] = value;
    here.arrived |= 1u << me.lane;
    if (here.arrived != mask) {
        wait(State::in_warp);
        return current->met;
    }
    here.arrived = 0;
    for (int lane = 0; lane < WARP_LANES; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const int number = me.warp * WARP_LANES + lane;
        std::memcpy(fibers[number].met, here.values, sizeof here.values);
        if (lane != int(me.lane)) make_ready(number);
    }
    return current->met;
}

inline int barrier(bool flag) {
    const int turn = barrier_turn;
    flags_raised += flag;
    if (++num_waiting < num_threads) {
        wait(State::at_barrier);
        return flags_result[turn];
    }
    flags_result[turn] = flags_raised;
    barrier_turn ^= 1;
    flags_raised = num_waiting = 0;
    const int me = current->thread.linear;
    for (int i = 0; i < num_threads; ++i) {  // the last one waits as well, so that all leave in the order of the seed
        const int number = seed % 4 == 2 ? num_threads - 1 - i : i;
        if (number != me) make_ready(number);
    }
    make_ready(me);
    current->context.switch_to(scheduler);
    return flags_result[turn];
}

inline void fiber_entry() {
    body();
    ++num_ended;
    current->state = State::ended;
    current->context.switch_to(scheduler);
}

inline void describe_stuck_block() {
    int at_barrier = 0, in_warp = 0;
    for (int i = 0; i < num_threads; ++i) {
        at_barrier += fibers[i].state == State::at_barrier;
        in_warp += fibers[i].state == State::in_warp;
    }
    std::snprintf(failure_text, sizeof failure_text,
                  "barrier divergence in block (%u, %u, %u): %d threads wait at __syncthreads(), %d in warp functions, "
                  "%d have ended", block_index.x, block_index.y, block_index.z, at_barrier, in_warp, num_ended);
    failure = failure_text;
}

// Runs `kernel` on all threads of one block; false if it failed.
inline bool run_block(void (*kernel)()) {
    if (stacks == nullptr) stacks = static_cast<char*>(std::aligned_alloc(4096, STACK * MAX_THREADS));
    body = kernel;
    std::memset(gatherings, 0, sizeof gatherings);
    num_waiting = num_ended = flags_raised = barrier_turn = queue_start = queue_size = 0;
    for (int i = 0; i < num_threads; ++i) {
        const int number = seed % 4 == 2 ? num_threads - 1 - i : i;
        Fiber& fiber = fibers[number];
        const unsigned n = number, x = block_size.x, y = block_size.y;
        fiber.thread = {{n % x, n / x % y, n / x / y}, n, n / WARP_LANES, n % WARP_LANES};
        fiber.context.prepare(stacks + STACK * n, fiber_entry);
        make_ready(number);
    }
    while (queue_size > 0 && failure == nullptr) {
        current = &fibers[next_ready()];
        scheduler.switch_to(current->context);
    }
    if (failure == nullptr && num_ended < num_threads) describe_stuck_block();
    return failure == nullptr;
}

// All blocks of the grid, in the order `blocks`.
template <class Before, class After>
bool run_grid(const unsigned* blocks, unsigned count, void (*kernel)(), Before before, After after) {
    num_threads = block_size.x * block_size.y * block_size.z;
    failure = nullptr;
    random_state = seed * 2654435761u + 1;
    for (unsigned i = 0; i < count; ++i) {
        before(blocks[i]);
        if (!run_block(kernel)) return false;
        if (failure = after(); failure != nullptr) return false;
    }
    return true;
}
}
