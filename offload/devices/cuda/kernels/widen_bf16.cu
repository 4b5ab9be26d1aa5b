// Some columns of a bf16 matrix as a dense fp32 panel, out[rows, width], for GPUs whose GEMM takes no bf16.
//
// Rows of the matrix begin every `pitch` elements. blockIdx.x is the row, a thread has 8 elements of it.

#include "common.cuh"

template <bool ALIGNED>
__global__ void __launch_bounds__(MAX_THREADS)
widen_bf16(const unsigned short *__restrict__ w, float *__restrict__ out, int pitch, int width) {
    constexpr int ELEMENTS = 8;
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * ELEMENTS;
    if (at >= width) return;
    const Chunk<4> stored = load_chunk<ALIGNED, 4>(w + (size_t)blockIdx.x * pitch + at, width - at);
    float *to = out + (size_t)blockIdx.x * width + at;
    if constexpr (ALIGNED) {
#pragma unroll
        for (int i = 0; i < ELEMENTS; i += 4)
            *(float4 *)(to + i) = {widened<Bf16>(stored, i), widened<Bf16>(stored, i + 1),
                                   widened<Bf16>(stored, i + 2), widened<Bf16>(stored, i + 3)};
    } else {
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i)
            if (at + i < width) to[i] = widened<Bf16>(stored, i);
    }
}
