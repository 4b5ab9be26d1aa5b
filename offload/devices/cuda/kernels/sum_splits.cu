// y[i] = bias[column] + the splits' parts[split, i], always in the order of the splits; i < rows * columns.

#include "common.cuh"

__global__ void __launch_bounds__(MAX_THREADS)
sum_splits(const float *__restrict__ parts, const float *__restrict__ bias, float *__restrict__ y, int columns,
           int count, int splits) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = bias ? bias[i % columns] : 0.0f;
    for (int split = 0; split < splits; ++split) sum += __ldg(parts + (size_t)split * count + i);
    y[i] = sum;
}
