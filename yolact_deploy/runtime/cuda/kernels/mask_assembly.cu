// Mask assembly (YOLACT, arXiv:1904.02689, section 3.1): sigmoid(prototypes x coefficients), cropped to padded boxes.
//
// Legend: N images, D detection slots, K coefficients, h x w prototypes. All arrays are dense.
//
// Per image of YOLACT-550 (h = w = 138, K = 32, D = 100):
//   memory      prototypes 2.44 MB read, masks 7.62 MB written (half of each in float16), coefficients and boxes 14 KB
//   arithmetic  128 MFLOP if every box covers the image: 2 K + 3 operations per mask pixel; typical COCO objects cover
//               about 6 % of it, and almost nothing is computed outside the boxes
// So the limit is memory bandwidth; with ZERO_OUTSIDE = 0, which writes only inside the boxes, mostly for prototypes.
//
// A warp owns 32 adjacent pixels and a group of detections, and is independent of other warps. Its lanes test 32
// detections at a time for overlap with its pixels. At the first overlap it loads the prototypes: coalesced into shared
// memory, and from there one pixel per lane into registers, where they stay. The L1 cache broadcasts the coefficients.
//
// Arithmetic is float32 throughout. The crop equals that of postprocess.py and of the ONNX function: a pixel is kept if
// start <= index < stop in float32, and a box with a NaN keeps nothing.
//
// Defines: THREADS per block, COEFFICIENTS = K, PROTO_HALF, MASK_HALF, ZERO_OUTSIDE = 0 or 1.
#include <cuda_fp16.h>

#include "common.cuh"

#ifndef THREADS
#define THREADS 128
#endif
#ifndef COEFFICIENTS
#define COEFFICIENTS 32
#endif
#ifndef PROTO_HALF
#define PROTO_HALF 0
#endif
#ifndef MASK_HALF
#define MASK_HALF 0
#endif
#ifndef ZERO_OUTSIDE
#define ZERO_OUTSIDE 1
#endif

// PITCH is the distance between pixels in shared memory: an odd number of words, so that 32 pixels are in 32 banks.
#if PROTO_HALF
typedef __half Proto;
#define PROTO_BYTES 2
#define PITCH (2 * ((COEFFICIENTS + 1) / 2 | 1))
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
#else
typedef float Proto;
#define PROTO_BYTES 4
#define PITCH (COEFFICIENTS | 1)
__device__ __forceinline__ float to_float(float value) { return value; }
#endif

#if MASK_HALF
typedef __half Mask;
__device__ __forceinline__ Mask to_mask(float value) { return __float2half_rn(value); }
#else
typedef float Mask;
__device__ __forceinline__ Mask to_mask(float value) { return value; }
#endif

// Columns [left, right) and rows [top, bottom) in prototype pixels, without rounding.
struct Window {
    float left, top, right, bottom;
};

__device__ __forceinline__ bool is_nan(float value) { return !(value == value); }

__device__ __forceinline__ Window padded_window(float4 box, int height, int width, float padding) {
    const float x1 = __fmul_rn(box.x, (float)width), x2 = __fmul_rn(box.z, (float)width);
    const float y1 = __fmul_rn(box.y, (float)height), y2 = __fmul_rn(box.w, (float)height);
    Window window = {__fsub_rn(fminf(x1, x2), padding), __fsub_rn(fminf(y1, y2), padding),
                     __fadd_rn(fmaxf(x1, x2), padding), __fadd_rn(fmaxf(y1, y2), padding)};
    if (is_nan(box.x) || is_nan(box.y) || is_nan(box.z) || is_nan(box.w)) window.left = positive_infinity();
    return window;
}

// Whether a window may contain one of the image's pixels first .. last; if they span several rows, whole rows count.
__device__ __forceinline__ bool meets(const Window& window, int first, int last, int width) {
    const int top = first / width, bottom = last / width;
    const int left = top == bottom ? first - top * width : 0, right = top == bottom ? last - top * width : width - 1;
    return window.left <= (float)right && window.right > (float)left && window.top <= (float)bottom &&
           window.bottom > (float)top;
}

// The window held by lane number `lane`.
__device__ __forceinline__ Window window_of_lane(const Window& window, int lane) {
    const Window its = {__shfl_sync(ALL_LANES, window.left, lane), __shfl_sync(ALL_LANES, window.top, lane),
                        __shfl_sync(ALL_LANES, window.right, lane), __shfl_sync(ALL_LANES, window.bottom, lane)};
    return its;
}

__device__ __forceinline__ bool contains(const Window& window, float x, float y) {
    return window.left <= x && x < window.right && window.top <= y && y < window.bottom;
}

// Copies the prototypes of the warp's `count` pixels to its part of shared memory, `staged` [32][PITCH].
__device__ __forceinline__ void stage_prototypes(const Proto* proto, int count, Proto* staged) {
#if COEFFICIENTS * PROTO_BYTES % 16 == 0  // loads of 16 bytes
    const int per_piece = 16 / PROTO_BYTES, pieces = COEFFICIENTS / per_piece;
#pragma unroll
    for (int at = lane_of_thread(); at < WARP * pieces; at += WARP) {
        if (at < count * pieces) {
            const uint4 piece = __ldg(reinterpret_cast<const uint4*>(proto) + at);
            unsigned* words = reinterpret_cast<unsigned*>(staged + at / pieces * PITCH + at % pieces * per_piece);
            words[0] = piece.x;
            words[1] = piece.y;
            words[2] = piece.z;
            words[3] = piece.w;
        }
    }
#else
    for (int at = lane_of_thread(); at < count * COEFFICIENTS; at += WARP)
        staged[at / COEFFICIENTS * PITCH + at % COEFFICIENTS] = proto[at];
#endif
    __syncwarp();
}

// Four sums, so that additions do not depend on the previous one.
__device__ __forceinline__ float dot(const float* proto, const float* __restrict__ coeff) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#if COEFFICIENTS % 4 == 0
#pragma unroll
    for (int quad = 0; quad < COEFFICIENTS / 4; ++quad) {
        const float4 c = __ldg(reinterpret_cast<const float4*>(coeff) + quad);
        sums[0] = fmaf(proto[4 * quad], c.x, sums[0]);
        sums[1] = fmaf(proto[4 * quad + 1], c.y, sums[1]);
        sums[2] = fmaf(proto[4 * quad + 2], c.z, sums[2]);
        sums[3] = fmaf(proto[4 * quad + 3], c.w, sums[3]);
    }
#else
#pragma unroll
    for (int k = 0; k < COEFFICIENTS; ++k) sums[k % 4] = fmaf(proto[k], __ldg(coeff + k), sums[k % 4]);
#endif
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// proto [N,h,w,K], coeff [N,D,K], boxes [N,D,4] (xyxy, normalized) -> masks [N,D,h,w], probabilities.
// Grid: (ceil(h w / THREADS), ceil(D / group), N).
extern "C" __global__ void __launch_bounds__(THREADS)
    mask_assembly(const Proto* __restrict__ proto, const float* __restrict__ coeff, const float4* __restrict__ boxes,
                  int detections, int height, int width, int group, int padding_bits, Mask* __restrict__ masks) {
    __shared__ __align__(16) Proto staged[THREADS * PITCH];
    const int area = height * width, lane = lane_of_thread(), pixel = blockIdx.x * THREADS + threadIdx.x;
    const int first = pixel - lane, count = min(WARP, area - first);
    if (count <= 0) return;
    const int end = min((int)(blockIdx.y + 1) * group, detections);
    const size_t image = blockIdx.z;
    proto += (image * area + first) * COEFFICIENTS;
    coeff += image * detections * COEFFICIENTS;
    boxes += image * detections;
    masks += image * detections * area + pixel;
    const bool exists = lane < count;
    const float x = (float)(pixel % width), y = (float)(pixel / width);

    float values[COEFFICIENTS];  // the prototypes at this pixel
    bool have_values = false;
    for (int page = blockIdx.y * group; page < end; page += WARP) {
        const int in_page = min(WARP, end - page);
        Window windows = {};  // one per lane
        if (lane < in_page) windows = padded_window(boxes[page + lane], height, width, __int_as_float(padding_bits));
        const unsigned meeting =
            __ballot_sync(ALL_LANES, lane < in_page && meets(windows, first, first + count - 1, width));
        if (meeting != 0 && !have_values) {
            Proto* own = staged + (threadIdx.x - lane) * PITCH;
            stage_prototypes(proto, count, own);
#pragma unroll
            for (int k = 0; k < COEFFICIENTS; ++k) values[k] = exists ? to_float(own[lane * PITCH + k]) : 0.0f;
            have_values = true;
        }
        for (unsigned left = ZERO_OUTSIDE ? ALL_LANES >> (WARP - in_page) : meeting; left != 0; left &= left - 1) {
            const int slot = __ffs(left) - 1;
            bool inside = false;
            float probability = 0.0f;
            if (meeting >> slot & 1u) {
                const Window window = window_of_lane(windows, slot);  // by all lanes
                inside = exists && contains(window, x, y);
                if (inside) probability = sigmoid(dot(values, coeff + (page + slot) * COEFFICIENTS));
            }
            if (ZERO_OUTSIDE ? exists : inside) masks[(size_t)(page + slot) * area] = to_mask(probability);
        }
    }
}
