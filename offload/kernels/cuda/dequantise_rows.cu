// Rows of x that quantise_rows has put into int8 blocks, as fp16[rows, inner]: number * scale, rounded once.
//
// blockIdx.x is the row, a thread has 4 numbers of it.

#include "common.cuh"

__global__ void __launch_bounds__(MAX_THREADS)
dequantise_rows(const signed char *__restrict__ quantised, const float *__restrict__ scales,
                unsigned short *__restrict__ x, int inner, int blocks, int block_log2) {
    const int row = blockIdx.x, k = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    if (k >= inner) return;
    const Byte *from = (const Byte *)quantised + ((size_t)row * blocks << block_log2) + k;
    const unsigned word = load_chunk<true, 1>(from, 4).words[0]; // the last block is padded
    const float scale = __ldg(scales + (size_t)row * blocks + (k >> block_log2));
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = (float)(signed char)(word >> 8 * i & 0xffu) * scale;
    unsigned short *to = x + (size_t)row * inner + k;
    if (inner % 4 == 0 && (size_t)x % 8 == 0) {
        store_halves<Fp16>(values, to);
    } else {
        for (int i = 0; i < 4 && k + i < inner; ++i) to[i] = Fp16::narrow(values[i]);
    }
}
