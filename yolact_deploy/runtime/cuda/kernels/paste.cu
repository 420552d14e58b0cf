// Paste (YOLACT, arXiv:1904.02689, section 3.1): mask probabilities at prototype resolution to packed bits at image
// size, by bilinear interpolation (align_corners False) and a threshold of 0.5. Two kernels: paste_windows, paste_bits.
//
// Legend: N images, D detection slots, h x w prototypes, H x W image size (may differ per image). All arrays are dense.
//
// Masks cover a canvas of which the image is a part, or all of it (priors.py).
//
// Only the part of an image around each box is pasted, as consecutive rows of 32-bit words. The bits of all masks are
// thus one short block of memory, which may be host memory.
//
// Per image of 480 x 640 with 100 boxes that cover 6 % of it each, as in COCO (h = w = 138):
//   memory      70,000 words: 0.28 MB written; 0.5 MB of masks read, which are in the L2 cache
//   arithmetic  about 20 operations per prototype cell and row, 12 more per pixel at the edge of a mask
// So the limit is the transfer to the host: 11 microseconds over PCIe 4.0 (25 GB/s), seven times that at 1080 x 1920.
//
// The result equals that of paste.py bit for bit: the same float32 arithmetic, with _rn intrinsics that no compiler
// option fuses. It is computed only in cells between four prototype pixels of which some are inside and some outside.
// Masks are read only inside the padded boxes; outside they count as 0, whatever is in memory there.
//
// Defines: THREADS per block, MASK_HALF = 0 or 1, RESCORED = 1 if there are mask scores.
#include <cuda_fp16.h>

#include "common.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#ifndef MASK_HALF
#define MASK_HALF 0
#endif

#ifndef RESCORED
#define RESCORED 0
#endif

#if MASK_HALF
typedef __half Mask;
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
#else
typedef float Mask;
__device__ __forceinline__ float to_float(float value) { return value; }
#endif

// Six numbers per detection, as the host reads them. The width is 0 for an empty mask and -1 for one that does not fit;
// the others are 0 then.
struct __align__(8) Window {
    int x, y, width, height;  // pixels of the image; x is a multiple of 8
    int row_words;
    int first_word;
};

// -- one axis ---------------------------------------------------------------------------------------------------------

// Prototype pixels start .. stop - 1 along one axis.
struct Span {
    int start, stop;
};

// The pixels of a padded box along one axis: those with low <= index < high in float32.
__device__ __forceinline__ Span padded_span(float first, float second, int size, float padding) {
    const float a = __fmul_rn(first, (float)size), b = __fmul_rn(second, (float)size);
    const float low = ceilf(__fsub_rn(fminf(a, b), padding)), high = ceilf(__fadd_rn(fmaxf(a, b), padding));
    const Span span = {(int)fminf(fmaxf(low, 0.0f), (float)size), (int)fminf(fmaxf(high, 0.0f), (float)size)};
    return span;
}

// Where an image lies; the numbers of a row of `placements`.
struct __align__(8) Placement {
    int height, width, canvas_height, canvas_width, top, left;
};

struct Axis {
    int source, target;  // prototype pixels, image pixels
    int first;           // of the image on the canvas
    float scale;         // prototype pixels per pixel of the canvas
    float inverse;
};

__device__ __forceinline__ Axis axis_of(int source, int target, int canvas, int first) {
    const Axis axis = {source, target, first, __fdiv_rn((float)source, (float)canvas),
                       __fdiv_rn((float)canvas, (float)source)};
    return axis;
}

__device__ __forceinline__ Axis across_of(int mask_width, const Placement& where) {
    return axis_of(mask_width, where.width, where.canvas_width, where.left);
}

__device__ __forceinline__ Axis down_of(int mask_height, const Placement& where) {
    return axis_of(mask_height, where.height, where.canvas_height, where.top);
}

// The position of an image pixel in prototype pixels: at least 0, before the end of the last one, and monotonic. Its
// integer part is the cell.
__device__ __forceinline__ float position_of(const Axis& axis, int pixel) {
    return fmaxf(__fsub_rn(__fmul_rn(__fadd_rn((float)(pixel + axis.first), 0.5f), axis.scale), 0.5f), 0.0f);
}

// The first image pixel at or after a position; `target` if there is none.
__device__ __forceinline__ int first_pixel_at(const Axis& axis, float position) {
    if (position <= 0.0f) return 0;
    const float on_canvas = ceilf(__fsub_rn(__fmul_rn(__fadd_rn(position, 0.5f), axis.inverse), 0.5f));
    const float guess = __fsub_rn(on_canvas, (float)axis.first);
    int pixel = (int)fminf(fmaxf(guess, 0.0f), (float)axis.target);
    while (pixel > 0 && position_of(axis, pixel - 1) >= position) --pixel;  // at most one step, from rounding
    while (pixel < axis.target && position_of(axis, pixel) < position) ++pixel;
    return pixel;
}

// Image pixels that may be above 0.5 if only the prototype pixels of the span are above 0: from half a prototype pixel
// before the first to half a prototype pixel after the last, or to the end of the image for the last prototype pixel.
__device__ __forceinline__ Span pixels_of(const Axis& axis, Span span) {
    if (span.start >= span.stop) return Span{0, 0};
    return Span{first_pixel_at(axis, (float)span.start - 0.5f), first_pixel_at(axis, (float)span.stop - 0.5f)};
}

// -- paste_windows ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ bool is_nan(float value) { return !(value == value); }

__device__ __forceinline__ Window window_of(float4 box, const Axis& across, const Axis& down, float padding) {
    Window window = {};
    if (is_nan(box.x) || is_nan(box.y) || is_nan(box.z) || is_nan(box.w)) return window;
    const Span columns = pixels_of(across, padded_span(box.x, box.z, across.source, padding));
    const Span rows = pixels_of(down, padded_span(box.y, box.w, down.source, padding));
    if (columns.start >= columns.stop || rows.start >= rows.stop) return window;
    window.x = columns.start & ~7;
    window.y = rows.start;
    window.width = columns.stop - window.x;
    window.height = rows.stop - rows.start;
    window.row_words = (window.width + 31) / 32;
    return window;
}

// Word counts saturate at the largest int, which may also mean more.
__device__ __forceinline__ int saturated_sum(int a, int b) { return (int)min((unsigned)a + (unsigned)b, 0x7fffffffu); }

__device__ __forceinline__ int words_of(const Window& window) {
    return (int)min((long long)window.height * window.row_words, 0x7fffffffll);
}

// The sum of the words of the threads before this one; `total` is that of the block. All threads call it.
__device__ __forceinline__ int words_before(int words, int* sums, int* total) {
    int upto = words;  // sum over this warp's lanes up to and including this one
#pragma unroll
    for (int reach = 1; reach < WARP; reach *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, upto, reach);
        if (lane_of_thread() >= reach) upto = saturated_sum(upto, other);
    }
    int before = __shfl_up_sync(ALL_LANES, upto, 1);
    if (lane_of_thread() == 0) before = 0;
    if (lane_of_thread() == WARP - 1) sums[warp_of_thread()] = upto;
    __syncthreads();
    int all = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; ++warp) {
        if (warp == warp_of_thread()) before = saturated_sum(all, before);
        all = saturated_sum(all, sums[warp]);
    }
    *total = all;
    return before;
}

// The number of detections worth pasting: those above the user's score threshold, which come first. Fast NMS fills its
// slots with everything it keeps, mostly far below any useful score; pasting all of them would take longer than the rest
// of the tail. All threads call it.
__device__ __forceinline__ int count_above(const float* scores, int count, float threshold) {
    int above = 0;
    for (int page = 0; page < count; page += THREADS) {
        const int slot = page + threadIdx.x;
        above += __syncthreads_count(slot < count && scores[slot] > threshold);
    }
    return above;
}

// boxes [N,D,4] (xyxy, normalized), scores [N,D], best first, labels [N,D], num_detections [N], placements [N,6]
// -> windows [N,D,6], offsets [N,D+1]: the first word of each detection, then the number of all words that fit; and for
// the host, in memory that may be its own: words_needed [N], wanted [N], the number of detections above the threshold,
// and of these the windows, boxes, scores, labels and mask scores. One block per image.
extern "C" __global__ void __launch_bounds__(THREADS)
    paste_windows(const float4* __restrict__ boxes, const float* __restrict__ scores, const int* __restrict__ labels,
#if RESCORED
                  const float* __restrict__ mask_scores,
#endif
                  const int* __restrict__ num_detections, const Placement* __restrict__ placements, int detections,
                  int mask_height, int mask_width, int padding_bits, int capacity, int threshold_bits,
                  Window* __restrict__ windows, int* __restrict__ offsets, int* __restrict__ words_needed,
                  int* __restrict__ wanted, Window* __restrict__ found_windows, float4* __restrict__ found_boxes,
                  float* __restrict__ found_scores, int* __restrict__ found_labels
#if RESCORED
                  ,
                  float* __restrict__ found_mask_scores
#endif
    ) {
    __shared__ int sums[2][THREADS / WARP];
    const int image = blockIdx.x;
    const Placement where = placements[image];
    const size_t slots = (size_t)image * detections;
    const int above =
        count_above(scores + slots, min(num_detections[image], detections), __int_as_float(threshold_bits));
    const int found = where.height > 0 && where.width > 0 ? above : 0;
    const Axis across = across_of(mask_width, where), down = down_of(mask_height, where);
    boxes += slots;
    windows += slots;
    offsets += (size_t)image * (detections + 1);
    int first = 0;
    for (int page = 0; page < detections; page += THREADS) {
        const int slot = page + threadIdx.x;
        Window window = {};
        if (slot < found) window = window_of(boxes[slot], across, down, __int_as_float(padding_bits));
        const int words = words_of(window);
        int total;
        const int begin = saturated_sum(first, words_before(words, sums[page / THREADS % 2], &total));
        first = saturated_sum(first, total);
        if (slot >= detections) continue;
        offsets[slot] = begin;
        window.first_word = words > 0 ? begin : 0;
        if (words > 0 && words > capacity - begin) window = Window{0, 0, -1, 0, 0, 0};
        windows[slot] = window;
        if (slot >= above) continue;
        found_windows[slots + slot] = window;
        found_boxes[slots + slot] = boxes[slot];
        found_scores[slots + slot] = scores[slots + slot];
        found_labels[slots + slot] = labels[slots + slot];
#if RESCORED
        found_mask_scores[slots + slot] = mask_scores[slots + slot];
#endif
    }
    if (threadIdx.x == 0) {
        offsets[detections] = min(first, capacity);
        words_needed[image] = first;
        wanted[image] = above;
    }
}

// -- paste_bits -------------------------------------------------------------------------------------------------------

// The detection that owns word number `word`: the last one that starts there or earlier.
__device__ __forceinline__ int owner_of(const int* offsets, int detections, int word) {
    int low = 0, high = detections;  // offsets[low] <= word < offsets[high]
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (__ldg(offsets + middle) <= word) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// A value in a row of prototype pixels, 0 outside the span; `values` is null if the whole row is outside.
__device__ __forceinline__ float value_at(const Mask* values, Span columns, int x) {
    return values != nullptr && columns.start <= x && x < columns.stop ? to_float(values[x]) : 0.0f;
}

// Bits from .. to - 1 of a word, 0 <= from < to <= 32.
__device__ __forceinline__ unsigned bit_range(int from, int to) { return (ALL_LANES >> (32 - (to - from))) << from; }

// The bits of the image pixels first .. last - 1 of one row; bit 0 is the first. `upper` and `lower` are the rows of
// prototype pixels around it, `weight` is the weight of the lower one.
__device__ __forceinline__ unsigned row_bits(const Mask* upper, const Mask* lower, Span columns, float weight,
                                             const Axis& across, int first, int last) {
    unsigned bits = 0;
    for (int x = first, next; x < last; x = next) {  // one cell between prototype pixels at a time
        const int cell = (int)position_of(across, x);
        const int right = min(cell + 1, across.source - 1);
        next = min(first_pixel_at(across, (float)(cell + 1)), last);
        const float a = value_at(upper, columns, cell), b = value_at(upper, columns, right);
        const float c = value_at(lower, columns, cell), d = value_at(lower, columns, right);
        if (!(a > 0.5f || b > 0.5f || c > 0.5f || d > 0.5f)) continue;
        if (a > 0.5f && b > 0.5f && c > 0.5f && d > 0.5f) {
            bits |= bit_range(x - first, next - first);
            continue;
        }
        for (; x < next; ++x) {
            const float share = __fsub_rn(position_of(across, x), (float)cell), rest = __fsub_rn(1.0f, share);
            const float above = __fadd_rn(__fmul_rn(a, rest), __fmul_rn(b, share));
            const float below = __fadd_rn(__fmul_rn(c, rest), __fmul_rn(d, share));
            const float value = __fadd_rn(__fmul_rn(above, __fsub_rn(1.0f, weight)), __fmul_rn(below, weight));
            if (value > 0.5f) bits |= 1u << (x - first);
        }
    }
    return bits;
}

// masks [N,D,h,w], boxes, placements, and windows and offsets of paste_windows -> bits [N,capacity]: in memory order,
// the first pixel of eight is the most significant bit of a byte, as in np.packbits. Each thread computes whole words,
// adjacent threads adjacent words. Grid: (any number of blocks, N).
extern "C" __global__ void __launch_bounds__(THREADS)
    paste_bits(const Mask* __restrict__ masks, const float4* __restrict__ boxes, const Placement* __restrict__ placements,
               const Window* __restrict__ windows, const int* __restrict__ offsets, int detections, int mask_height,
               int mask_width, int padding_bits, int capacity, unsigned* __restrict__ bits) {
    const size_t image = blockIdx.y;
    const Placement where = placements[image];
    const Axis across = across_of(mask_width, where), down = down_of(mask_height, where);
    const float padding = __int_as_float(padding_bits);
    masks += image * detections * mask_height * mask_width;
    boxes += image * detections;
    windows += image * detections;
    offsets += image * (detections + 1);
    bits += image * capacity;
    const int words = offsets[detections], stride = gridDim.x * THREADS;
    for (int word = blockIdx.x * THREADS + threadIdx.x; word < words; word += stride) {
        const int slot = owner_of(offsets, detections, word);
        const Window window = windows[slot];
        if (window.width < 0) break;  // neither this one nor the following ones fit
        const int row = (word - window.first_word) / window.row_words;
        const int first = 32 * (word - window.first_word - row * window.row_words);
        const float4 box = boxes[slot];
        const Span columns = padded_span(box.x, box.z, mask_width, padding);
        const Span rows = padded_span(box.y, box.w, mask_height, padding);
        const float position = position_of(down, window.y + row);
        const int cell = (int)position, below = min(cell + 1, mask_height - 1);
        const Mask* mask = masks + (size_t)slot * mask_height * mask_width;
        const unsigned found = row_bits(rows.start <= cell && cell < rows.stop ? mask + cell * mask_width : nullptr,
                                        rows.start <= below && below < rows.stop ? mask + below * mask_width : nullptr,
                                        columns, __fsub_rn(position, (float)cell), across, window.x + first,
                                        window.x + min(first + 32, window.width));
        bits[word] = __byte_perm(__brev(found), 0, 0x0123);  // reverses the bits of each byte
    }
}
