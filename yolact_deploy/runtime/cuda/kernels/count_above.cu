// The number of detections per image worth pasting: those above the user's score threshold, which come first.
//
// Fast NMS fills its slots with everything it keeps, mostly far below any useful score; pasting all of them at image
// size would take longer than the rest of the tail.
//
// Memory: D scores per image. Legend: N images, D detection slots.
#define THREADS 128

// scores float32 [N,D], best first; num_detections int32 [N] -> wanted int32 [N]. Grid: N blocks of THREADS.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_above(const float* __restrict__ scores, const int* __restrict__ num_detections, int detections,
                int threshold_bits, int* __restrict__ wanted) {
    const int image = blockIdx.x, count = min(num_detections[image], detections);
    const float threshold = __int_as_float(threshold_bits);
    int above = 0;
    for (int page = 0; page < count; page += THREADS) {
        const int slot = page + threadIdx.x;
        above += __syncthreads_count(slot < count && scores[(size_t)image * detections + slot] > threshold);
    }
    if (threadIdx.x == 0) wanted[image] = above;
}
