// x[rows, inner] to int8 in blocks of 2**block_log2: q = round to even(x / scale), scale = largest magnitude / 127.
//
// quantised: int8[rows, blocks * block], zero beyond `inner`; scales: fp32[rows, blocks]; count = rows * blocks.
// The arithmetic is that of onnxruntime's CPU kernels for accuracy_level 4. A warp has one block. NaN and
// infinity in x make the scale, and with it all results of the block, NaN or infinite.

#include "common.cuh"

__global__ void __launch_bounds__(MAX_THREADS)
quantise_rows(const float *__restrict__ x, signed char *__restrict__ quantised, float *__restrict__ scales,
              int inner, int blocks, int block_log2, int count) {
    const int index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (index >= count) return; // the whole warp
    const int size = 1 << block_log2, k = index % blocks * size;
    const float *from = x + (size_t)(index / blocks) * inner + k;
    const int valid = min(size, inner - k);
    unsigned largest = 0; // bits of magnitudes order as integers, NaN above all
    for (int i = lane; i < valid; i += 32) largest = max(largest, __float_as_uint(__ldg(from + i)) & 0x7fffffffu);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
    const float scale = __uint_as_float(largest) / 127.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (int i = lane; i < size; i += 32) {
        const float value = i < valid ? __ldg(from + i) : 0.0f;
        quantised[(size_t)index * size + i] = (signed char)max(-128, min(127, __float2int_rn(value * inverse)));
    }
    if (lane == 0) scales[index] = scale;
}
