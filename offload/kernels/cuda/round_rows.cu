// fp32 numbers to fp16 or bf16: to the nearest, ties to even; beyond the range infinity; NaN stays NaN.
//
// A thread has 4 numbers.

#include "common.cuh"

template <typename Format>
__global__ void __launch_bounds__(MAX_THREADS)
round_rows(const float *__restrict__ x, typename Format::Stored *__restrict__ rounded, long long count) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4, left = count - at;
    if (left <= 0) return;
    if (left >= 4 && (size_t)x % 16 == 0 && (size_t)rounded % 8 == 0) {
        float values[4];
        load_floats<true>(x + at, 4, values);
        store_halves<Format>(values, rounded + at);
        return;
    }
    for (int i = 0; i < 4 && i < left; ++i) rounded[at + i] = Format::narrow(__ldg(x + at + i));
}
