// Shared by several kernels. CUDA C for NVRTC, compute capability 7.5 and later; the tests also compile it with g++.
#pragma once

#ifndef DYNAMIC_SHARED  // the emulator of the tests has its own
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]
#endif

#define ALL_LANES 0xffffffffu
#define WARP 32

__device__ __forceinline__ float positive_infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / WARP; }

// All threads of a block of BLOCK x 1 x 1 threads must call the scans below. `sums` is shared memory for one int per
// warp. It may be reused after the block's next barrier; callers alternate between two, which saves a barrier.

// The number of flagged threads before this one; `total` is that of the block.
template <int BLOCK>
__device__ __forceinline__ int flagged_before(bool flag, int* sums, int* total) {
    const unsigned flagged = __ballot_sync(ALL_LANES, flag);
    if (lane_of_thread() == 0) sums[warp_of_thread()] = __popc(flagged);
    __syncthreads();
    int before = __popc(flagged & ((1u << lane_of_thread()) - 1u)), all = 0;
#pragma unroll
    for (int warp = 0; warp < BLOCK / WARP; ++warp) {
        const int sum = sums[warp];
        before += warp < warp_of_thread() ? sum : 0;
        all += sum;
    }
    *total = all;
    return before;
}

// The sum of the amounts of the threads before this one; `total` is that of the block.
template <int BLOCK>
__device__ __forceinline__ int amount_before(int amount, int* sums, int* total) {
    int upto = amount;  // sum over this warp's lanes up to and including this one
#pragma unroll
    for (int reach = 1; reach < WARP; reach *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, upto, reach);
        upto += lane_of_thread() >= reach ? other : 0;
    }
    if (lane_of_thread() == WARP - 1) sums[warp_of_thread()] = upto;
    __syncthreads();
    int before = upto - amount, all = 0;
#pragma unroll
    for (int warp = 0; warp < BLOCK / WARP; ++warp) {
        const int sum = sums[warp];
        before += warp < warp_of_thread() ? sum : 0;
        all += sum;
    }
    *total = all;
    return before;
}
