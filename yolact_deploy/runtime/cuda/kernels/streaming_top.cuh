// The best of any number of entries, in shared memory: a block offers one entry per thread at a time, and a buffer of a
// few thousand keys is sorted and cut back to the best ones whenever it is full.
//
// The upper half of a key is the score, in a form whose order as an unsigned number equals that of the floats. The
// lower half is the complement of the entry's index. So the larger key is the better entry, equal scores prefer the
// lower index, no two keys are equal, and the result does not depend on the order of threads. 0 is no key.
#pragma once
#include "common.cuh"

typedef unsigned long long Key;

// -0 counts as +0, because the two are equal as scores.
__device__ __forceinline__ Key make_key(float score, unsigned index) {
    const unsigned bits = __float_as_uint(__fadd_rn(score, 0.0f));
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Key)ordered << 32 | ~index;
}

__device__ __forceinline__ float key_score(Key key) {
    const unsigned ordered = (unsigned)(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ unsigned key_index(Key key) { return ~(unsigned)key; }

// Bitonic sort, largest first. All threads of the block; `size` is a power of two, at least 32.
//
// A warp holds 32 adjacent keys, one per lane, so steps of stride 16 and less are exchanges between lanes, without a
// barrier: of the 45 steps that sort 512 keys, 10 use shared memory.
template <int BLOCK>
__device__ __forceinline__ void sort_steps_in_warps(Key* keys, int size, int first_span, int last_span) {
    for (int at = threadIdx.x; at < size; at += BLOCK) {
        Key mine = keys[at];
        for (int span = first_span; span <= last_span; span *= 2) {
            const bool falling = (at & span) == 0;
            for (int stride = min(span, WARP) / 2; stride > 0; stride /= 2) {
                const Key other = __shfl_xor_sync(ALL_LANES, mine, stride);
                const bool wants_larger = ((at & stride) == 0) == falling;
                mine = (mine > other) == wants_larger ? mine : other;
            }
        }
        keys[at] = mine;
    }
    __syncthreads();
}

template <int BLOCK>
__device__ __forceinline__ void sort_falling(Key* keys, int size) {
    sort_steps_in_warps<BLOCK>(keys, size, 2, WARP);
    for (int span = 2 * WARP; span <= size; span *= 2) {
        for (int stride = span / 2; stride >= WARP; stride /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += BLOCK) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const Key a = keys[low], b = keys[high];
                if ((a < b) == ((low & span) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
        sort_steps_in_warps<BLOCK>(keys, size, span, span);
    }
}

// All fields are the same in all threads of the block.
struct StreamingTop {
    Key* keys;  // [capacity], shared memory; capacity >= wanted + BLOCK, a power of two
    int* sums;  // [2 * WARP], shared memory for the scans
    int capacity;
    int wanted;  // number of best keys to keep
    int count;   // number of keys held
    int turn;    // which half of `sums` the next scan uses
    Key bound;   // entries must beat it; the wanted-th best of those seen at the last pruning
};

__device__ __forceinline__ StreamingTop empty_top(Key* keys, int* sums, int capacity, int wanted) {
    const StreamingTop top = {keys, sums, capacity, wanted, 0, 0, 0};
    return top;
}

// Sorts the held keys, best first, and keeps the best. Ends with a barrier.
template <int BLOCK>
__device__ __forceinline__ void prune(StreamingTop& top) {
    int size = WARP;
    while (size < top.count) size *= 2;
    for (int at = top.count + threadIdx.x; at < size; at += BLOCK) top.keys[at] = 0;
    __syncthreads();
    sort_falling<BLOCK>(top.keys, size);
    top.count = min(top.count, top.wanted);
    top.bound = top.count == top.wanted ? top.keys[top.wanted - 1] : 0;
}

// Offers one entry per thread; key 0 is no entry.
template <int BLOCK>
__device__ __forceinline__ void offer(StreamingTop& top, Key key) {
    if (top.count + BLOCK > top.capacity) prune<BLOCK>(top);
    const bool taken = key > top.bound;
    int total;
    const int at = top.count + flagged_before<BLOCK>(taken, top.sums + top.turn * WARP, &total);
    if (taken) top.keys[at] = key;
    top.count += total;
    top.turn ^= 1;
}
