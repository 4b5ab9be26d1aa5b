// y[ROWS, columns] = x[ROWS, inner] . w[inner, columns] + bias; fp16 or bf16 weights, fp32 throughout.
//
// A block has TILE columns: 8 threads side by side read 16 bytes each of one row of w, a cache line together,
// and each takes STEP rows at a time. blockIdx.y is the split of `inner`, as in float_nk.cu, in units of STEP
// rows. Needs warps * ROWS * TILE floats of shared memory.

#include "common.cuh"

constexpr int TILE = 64, ELEMENTS = 8, STEP = 4;
constexpr int THREADS_ACROSS = TILE / ELEMENTS;

template <typename Format, int ROWS, bool ALIGNED>
__global__ void __launch_bounds__(MAX_THREADS, blocks_at_once(ROWS, ALIGNED))
multiply_float_kn(const typename Format::Stored *__restrict__ w, const float *__restrict__ x,
                  const float *__restrict__ bias, float *__restrict__ y, int columns, int inner,
                  int steps_per_split) {
    SHARED_MEMORY(float, warp_sums);
    const int across = threadIdx.x % THREADS_ACROSS * ELEMENTS;
    const int first = blockIdx.x * TILE + across, valid_columns = columns - first;
    const int begin = blockIdx.y * steps_per_split;
    const int end = min(begin + steps_per_split, (inner + STEP - 1) / STEP);
    float sums[ROWS][ELEMENTS] = {};
    if (valid_columns > 0) {
        for (int step = begin + threadIdx.x / THREADS_ACROSS; step < end; step += blockDim.x / THREADS_ACROSS) {
            const int k = step * STEP;
            Chunk<4> stored[STEP];
#pragma unroll
            for (int j = 0; j < STEP; ++j) {
                const int valid = k + j < inner ? valid_columns : 0;
                stored[j] = load_chunk<ALIGNED, 4>(w + (size_t)(k + j) * columns + first, valid);
            }
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                float xs[STEP];
                load_floats<ALIGNED>(x + (size_t)row * inner + k, inner - k, xs);
#pragma unroll
                for (int j = 0; j < STEP; ++j)
#pragma unroll
                    for (int i = 0; i < ELEMENTS; ++i)
                        sums[row][i] = fmaf(xs[j], widened<Format>(stored[j], i), sums[row][i]);
            }
        }
    }
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) {
            float sum = sums[row][i];
#pragma unroll
            for (int distance = 16; distance >= THREADS_ACROSS; distance /= 2)
                sum += __shfl_xor_sync(ALL_LANES, sum, distance);
            if (threadIdx.x % 32 < THREADS_ACROSS) warp_sums[(warp * ROWS + row) * TILE + across + i] = sum;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * TILE; i += blockDim.x) {
        const int column = blockIdx.x * TILE + i % TILE;
        if (column >= columns) continue;
        float sum = bias ? bias[column] : 0.0f;
        for (int part = 0; part < warps; ++part) sum += warp_sums[part * ROWS * TILE + i];
        y[(size_t)(blockIdx.y * ROWS + i / TILE) * columns + column] = sum;
    }
}
