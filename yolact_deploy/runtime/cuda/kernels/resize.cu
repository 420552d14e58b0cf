// Resize: frames, uint8 BGR of any size and pitch, to images of the network's input, bilinear, not antialiased. Frames
// of one launch have one size and are equally far apart in memory.
//
// Legend: H x W the frame, S the side of the image.
//
// To S = 550, per image:
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
// Defines: TILE_WIDTH, TILE_HEIGHT of the part of the image that a block computes, FLOAT_OUTPUT = 0 or 1.
#ifndef TILE_WIDTH
#define TILE_WIDTH 64
#endif
#ifndef TILE_HEIGHT
#define TILE_HEIGHT 16
#endif
#ifndef FLOAT_OUTPUT
#define FLOAT_OUTPUT 0
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

// `scale` is frame columns per image column; the frame has `length` columns, and its edge columns are repeated outside.
__device__ __forceinline__ Tap tap_at(int at, double scale, int length) {
    const double exact = (at + 0.5) * scale - 0.5;
#if FLOAT_OUTPUT
    const double position = exact;
#else
    const float position = (float)exact;
#endif
    const int cell = (int)floor(position);
    const float share = (float)(position - cell);
    Tap tap = {min(max(cell, 0), length - 1), min(max(cell + 1, 0), length - 1), 0, 0};
#if FLOAT_OUTPUT
    tap.near_weight = 1.0f - share;
    tap.far_weight = share;
#else
    tap.near_weight = __float2int_rn((1.0f - share) * 2048.0f);
    tap.far_weight = __float2int_rn(share * 2048.0f);
#endif
    return tap;
}

__device__ __forceinline__ Value blend(const unsigned char* upper, const unsigned char* lower, Tap column, Tap row) {
    const Weight above = upper[column.near] * column.near_weight + upper[column.far] * column.far_weight;
    const Weight below = lower[column.near] * column.near_weight + lower[column.far] * column.far_weight;
#if FLOAT_OUTPUT
    return above * row.near_weight + below * row.far_weight;
#else
    const int sum = ((above >> 4) * row.near_weight >> 16) + ((below >> 4) * row.far_weight >> 16);
    return (Value)((sum + 2) >> 2);
#endif
}

// frames [H,W,3], `frame_stride` bytes apart, rows `pitch` bytes apart -> images [S,S,3]. Blocks of TILE_WIDTH x any
// number of threads. Grid: (ceil(S / TILE_WIDTH), ceil(S / TILE_HEIGHT), frames).
extern "C" __global__ void resize(const unsigned char* __restrict__ frame, int height, int width, int pitch, int size,
                                  double column_scale, double row_scale, long long frame_stride,
                                  Value* __restrict__ image) {
    __shared__ Tap columns[TILE_WIDTH], rows[TILE_HEIGHT];
    frame += blockIdx.z * frame_stride;
    image += (size_t)blockIdx.z * size * size * 3;
    const int left = blockIdx.x * TILE_WIDTH, top = blockIdx.y * TILE_HEIGHT;
    const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int at = thread; at < TILE_WIDTH + TILE_HEIGHT; at += threads) {
        if (at < TILE_WIDTH) {
            Tap tap = tap_at(left + at, column_scale, width);
            tap.near *= 3;  // bytes from here on
            tap.far *= 3;
            columns[at] = tap;
        } else {
            rows[at - TILE_WIDTH] = tap_at(top + at - TILE_WIDTH, row_scale, height);
        }
    }
    __syncthreads();
    const int x = left + threadIdx.x;
    if (x >= size) return;
    const Tap column = columns[threadIdx.x];
    for (int line = threadIdx.y; line < TILE_HEIGHT && top + line < size; line += blockDim.y) {
        const Tap row = rows[line];
        const unsigned char* upper = frame + (size_t)row.near * pitch;
        const unsigned char* lower = frame + (size_t)row.far * pitch;
        Value* out = image + ((size_t)(top + line) * size + x) * 3;
#pragma unroll
        for (int channel = 0; channel < 3; ++channel)
            out[channel] = blend(upper + channel, lower + channel, column, row);
    }
}
