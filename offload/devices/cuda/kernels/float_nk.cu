// y[ROWS, columns] = x[ROWS, inner] . w[columns, inner] transposed, + bias; fp16 or bf16 weights, fp32 throughout.
//
// A block has COLUMNS_PER_BLOCK rows of w, which its threads walk through side by side, 8 elements at a time.
// blockIdx.y is the split of `inner`: chunks [blockIdx.y * chunks_per_split, + chunks_per_split). With several
// splits y is [splits, ROWS, columns], for sum_splits to add up, and bias is null.

#include "common.cuh"

template <typename Format, int ROWS, bool ALIGNED>
__global__ void __launch_bounds__(MAX_THREADS, blocks_at_once(ROWS, ALIGNED))
multiply_float_nk(const typename Format::Stored *__restrict__ w, const float *__restrict__ x,
                  const float *__restrict__ bias, float *__restrict__ y, int columns, int inner,
                  int chunks_per_split) {
    constexpr int ELEMENTS = 8; // of a chunk
    const typename Format::Stored *w_rows[COLUMNS_PER_BLOCK];
#pragma unroll
    for (int c = 0; c < COLUMNS_PER_BLOCK; ++c) { // beyond the last column: read that one again, write nothing
        const int column = min((int)blockIdx.x * COLUMNS_PER_BLOCK + c, columns - 1);
        w_rows[c] = w + (size_t)column * inner;
    }
    float sums[COLUMNS_PER_BLOCK][ROWS] = {};
    const int begin = blockIdx.y * chunks_per_split;
    const int end = min(begin + chunks_per_split, (inner + ELEMENTS - 1) / ELEMENTS);
    for (int chunk = begin + threadIdx.x; chunk < end; chunk += blockDim.x) {
        const int k = chunk * ELEMENTS, valid = inner - k;
        Chunk<4> stored[COLUMNS_PER_BLOCK];
#pragma unroll
        for (int c = 0; c < COLUMNS_PER_BLOCK; ++c) stored[c] = load_chunk<ALIGNED, 4>(w_rows[c] + k, valid);
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            float xs[ELEMENTS];
            load_floats<ALIGNED>(x + (size_t)row * inner + k, valid, xs);
#pragma unroll
            for (int c = 0; c < COLUMNS_PER_BLOCK; ++c)
#pragma unroll
                for (int i = 0; i < ELEMENTS; ++i)
                    sums[c][row] = fmaf(xs[i], widened<Format>(stored[c], i), sums[c][row]);
        }
    }
    write_block_sums(sums, bias, y, columns);
}
