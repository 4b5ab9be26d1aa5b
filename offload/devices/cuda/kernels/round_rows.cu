// Rows of fp32 numbers to fp16 or bf16: to the nearest, ties to even; beyond the range infinity; NaN stays NaN.
//
// A row is divided by its scale first where there are scales: a power of two, so that nothing else is lost. blockIdx.x
// is the row, a thread has 4 numbers of it.

#include "common.cuh"

template <typename Format>
__global__ void __launch_bounds__(MAX_THREADS)
round_rows(const float *__restrict__ x, const float *__restrict__ scales, typename Format::Stored *__restrict__ rounded,
           int inner) {
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 4, left = inner - at;
    if (left <= 0) return;
    const float inverse = scales ? 1.0f / __ldg(scales + blockIdx.x) : 1.0f;
    const float *from = x + (size_t)blockIdx.x * inner + at;
    typename Format::Stored *to = rounded + (size_t)blockIdx.x * inner + at;
    if (left >= 4 && (size_t)from % 16 == 0 && (size_t)to % 8 == 0) {
        float values[4];
        load_floats<true>(from, 4, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] *= inverse;
        store_halves<Format>(values, to);
        return;
    }
    for (int i = 0; i < 4 && i < left; ++i) to[i] = Format::narrow(__ldg(from + i) * inverse);
}
