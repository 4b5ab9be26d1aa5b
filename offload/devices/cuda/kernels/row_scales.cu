// Scales with which rows of x fit fp16, and the way back for what came of them.
//
// A scale is a power of two, and 1 for all rows that fit as they are, and those with a NaN or an infinity.

#include "common.cuh"

constexpr unsigned INFINITE = 0x7f800000u;        // bits of magnitudes order as integers, NaN above all
constexpr unsigned LARGEST_FP16 = 0x477fe000u;    // 65504
constexpr unsigned LEAST_UNSCALED = 0x3c800000u;  // 2**-6: 256 times the least that fp16 has in full precision
constexpr unsigned EXPONENT_ABOVE = 14;           // a scaled row reaches from 2**14 to 2**15

// scales: fp32[rows] for x: fp32[rows, inner]. A warp has one row.
__global__ void __launch_bounds__(MAX_THREADS)
row_scales(const float *__restrict__ x, float *__restrict__ scales, int inner, int rows) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return; // the whole warp
    unsigned largest = 0;
    for (int i = lane; i < inner; i += 32)
        largest = max(largest, __float_as_uint(__ldg(x + (size_t)row * inner + i)) & 0x7fffffffu);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
    if (lane != 0) return;
    const bool fits = largest == 0 || largest >= INFINITE || (largest >= LEAST_UNSCALED && largest <= LARGEST_FP16);
    const unsigned exponent = max(largest >> 23, EXPONENT_ABOVE + 1); // so that the scale is no subnormal number
    scales[row] = fits ? 1.0f : __uint_as_float(exponent - EXPONENT_ABOVE << 23);
}

// y: fp32[rows, columns] times the scale of each row. blockIdx.x is the row, a thread has 4 numbers of it.
__global__ void __launch_bounds__(MAX_THREADS)
scale_rows(float *__restrict__ y, const float *__restrict__ scales, int columns) {
    const float scale = __ldg(scales + blockIdx.x);
    if (scale == 1.0f) return;
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    float *to = y + (size_t)blockIdx.x * columns + at;
    for (int i = 0; i < 4 && at + i < columns; ++i) to[i] *= scale;
}
