// Resize: frames, uint8 BGR of any size and pitch, to images of the network's input, bilinear, not antialiased. Frames
// of one launch have one size and are equally far apart in memory.
//
// Legend: H x W the frame, h x w the image.
//
// A frame is part of a canvas, which is what is resized (priors.py). With PADDED, the canvas is larger than the frame
// and has one color around it.
//
// To h = w = 550, per image:
//   memory      a frame of 480 x 640 has 0.92 MB, nearly all of which is read; of a frame of 1080 x 1920 (6.2 MB),
//               about 3.6 MB are read; 0.91 MB are written
//   arithmetic  9 operations for each of 0.91 M values
// So it takes a few microseconds. The limit is the frame's transfer to the device: 6.2 MB take 250 microseconds over
// PCIe 4.0 (25 GB/s).
//
// uint8 output equals cv2.resize with INTER_LINEAR bit for bit: positions in double, rounded to float; weights of 11
// bits; sums of a row shifted by 4 bits, their products by 16, the last two rounded. Verified for sizes of 1 to 3840,
// odd ones, and shrinking by exactly 2 (a separate path in OpenCV) with the x86-64 wheels of OpenCV 4.8 to 5.0. OpenCV
// builds that use a vendor library of the CPU may differ by one gray level.
// float32 output is the bilinear value within rounding. OpenCV with Intel's library differs by less than 1e-3; without
// it, OpenCV rounds positions to float, which changes noise in frames of 4000 columns by up to 0.1.
//
// The two axes are independent, so a block computes the columns and rows of its tile once; the rest is integer
// arithmetic. A product must not be fused with the following addition, or positions differ from OpenCV's:
// nvrtc: -fmad=false
//
// Defines: TILE_WIDTH, TILE_HEIGHT of the part of the image that a block computes, FLOAT_OUTPUT and PADDED = 0 or 1.
#ifndef TILE_WIDTH
#define TILE_WIDTH 64
#endif
#ifndef TILE_HEIGHT
#define TILE_HEIGHT 16
#endif
#ifndef FLOAT_OUTPUT
#define FLOAT_OUTPUT 0
#endif
#ifndef PADDED
#define PADDED 0
#endif

#if FLOAT_OUTPUT
typedef float Value;
typedef float Weight;
#else
typedef unsigned char Value;
typedef int Weight;  // in units of 1 / 2048
#endif

// The two columns or rows of the frame that make one of the image, with their weights.
struct Tap {
    int near, far;
    Weight near_weight, far_weight;
};

// One axis of a frame on its canvas: `length` columns of the canvas, of which `count` from `first` on are the frame's.
struct Axis {
    int length, first, count;
};

// `scale` is canvas columns per image column; the edge columns of the canvas are repeated outside. Columns of the result
// are the frame's, and -1 in the padding.
__device__ __forceinline__ Tap tap_at(int at, double scale, Axis axis) {
    const double exact = (at + 0.5) * scale - 0.5;
#if FLOAT_OUTPUT
    const double position = exact;
#else
    const float position = (float)exact;
#endif
    const int cell = (int)floor(position);
    const float share = (float)(position - cell);
    Tap tap = {min(max(cell, 0), axis.length - 1), min(max(cell + 1, 0), axis.length - 1), 0, 0};
#if PADDED
    tap.near -= axis.first;
    tap.far -= axis.first;
    if (tap.near < 0 || tap.near >= axis.count) tap.near = -1;
    if (tap.far < 0 || tap.far >= axis.count) tap.far = -1;
#endif
#if FLOAT_OUTPUT
    tap.near_weight = 1.0f - share;
    tap.far_weight = share;
#else
    tap.near_weight = __float2int_rn((1.0f - share) * 2048.0f);
    tap.far_weight = __float2int_rn(share * 2048.0f);
#endif
    return tap;
}

// A value of a row at a byte; in the padding, where the row is null or the byte negative, the value of the padding.
__device__ __forceinline__ Weight value_at(const unsigned char* row, int at, float padding) {
#if PADDED
    if (row == nullptr || at < 0) return (Weight)padding;
#endif
    return row[at];
}

__device__ __forceinline__ Value blend(const unsigned char* upper, const unsigned char* lower, int near, int far,
                                       Tap column, Tap row, float padding) {
    const Weight above = value_at(upper, near, padding) * column.near_weight + value_at(upper, far, padding) * column.far_weight;
    const Weight below = value_at(lower, near, padding) * column.near_weight + value_at(lower, far, padding) * column.far_weight;
#if FLOAT_OUTPUT
    return above * row.near_weight + below * row.far_weight;
#else
    const int sum = ((above >> 4) * row.near_weight >> 16) + ((below >> 4) * row.far_weight >> 16);
    return (Value)((sum + 2) >> 2);
#endif
}

// frames [H,W,3], `frame_stride` bytes apart, rows `pitch` bytes apart -> images [h,w,3]. A frame begins at row `first_row`
// and column `first_column` of its canvas, whose other pixels are `blue`, `green`, `red` (bits of floats). Blocks of
// TILE_WIDTH x any number of threads. Grid: (ceil(w / TILE_WIDTH), ceil(h / TILE_HEIGHT), frames).
extern "C" __global__ void resize(const unsigned char* __restrict__ frame, int height, int width, int pitch,
                                  int out_height, int out_width, int canvas_height, int canvas_width, int first_row,
                                  int first_column, int blue, int green, int red, double column_scale,
                                  double row_scale, long long frame_stride, Value* __restrict__ image) {
    __shared__ Tap columns[TILE_WIDTH], rows[TILE_HEIGHT];
    frame += blockIdx.z * frame_stride;
    image += (size_t)blockIdx.z * out_height * out_width * 3;
    const int left = blockIdx.x * TILE_WIDTH, top = blockIdx.y * TILE_HEIGHT;
    const Axis across = {canvas_width, first_column, width}, down = {canvas_height, first_row, height};
    const float padding[3] = {__int_as_float(blue), __int_as_float(green), __int_as_float(red)};
    const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int at = thread; at < TILE_WIDTH + TILE_HEIGHT; at += threads) {
        if (at < TILE_WIDTH) {
            Tap tap = tap_at(left + at, column_scale, across);
            tap.near *= 3;  // bytes from here on, -3 in the padding
            tap.far *= 3;
            columns[at] = tap;
        } else {
            rows[at - TILE_WIDTH] = tap_at(top + at - TILE_WIDTH, row_scale, down);
        }
    }
    __syncthreads();
    const int x = left + threadIdx.x;
    if (x >= out_width) return;
    const Tap column = columns[threadIdx.x];
    for (int line = threadIdx.y; line < TILE_HEIGHT && top + line < out_height; line += blockDim.y) {
        const Tap row = rows[line];
        const unsigned char* upper = row.near < 0 ? nullptr : frame + (size_t)row.near * pitch;
        const unsigned char* lower = row.far < 0 ? nullptr : frame + (size_t)row.far * pitch;
        Value* out = image + ((size_t)(top + line) * out_width + x) * 3;
#pragma unroll
        for (int channel = 0; channel < 3; ++channel)
            out[channel] = blend(upper, lower, column.near + channel, column.far + channel, column, row, padding[channel]);
    }
}
