// y[ROWS, columns] = x[ROWS, inner] . (block-quantised w) transposed, + bias; fp32 activations and sums.
//
// The weights met are those of DequantizeLinear in fp32, bit by bit. Blocks and threads share the work as in
// float_nk.cu; a chunk of WORDS words lies within one block of the weight.

#include "blocks.cuh"

template <int BITS, typename Scale, int WORDS, int ROWS, bool ALIGNED>
__global__ void __launch_bounds__(MAX_THREADS, blocks_at_once(ROWS, ALIGNED))
multiply_blocks_float(const Byte *__restrict__ w, const typename Scale::Stored *__restrict__ scales,
                      const Byte *__restrict__ zeros, const float *__restrict__ x, const float *__restrict__ bias,
                      float *__restrict__ y, int columns, int inner, int blocks, int block_log2,
                      int chunks_per_split) {
    constexpr int WORD = PER_WORD<BITS>, CHUNK = WORDS * WORD; // codes
    const int first = blockIdx.x * COLUMNS_PER_BLOCK;
    float sums[COLUMNS_PER_BLOCK][ROWS] = {};
    const int begin = blockIdx.y * chunks_per_split;
    const int end = min(begin + chunks_per_split, (inner + CHUNK - 1) / CHUNK);
    for (int chunk = begin + threadIdx.x; chunk < end; chunk += blockDim.x) {
        const int block = chunk * CHUNK >> block_log2;
        Chunk<WORDS> stored[COLUMNS_PER_BLOCK];
        float scale[COLUMNS_PER_BLOCK], zero[COLUMNS_PER_BLOCK];
#pragma unroll
        for (int c = 0; c < COLUMNS_PER_BLOCK; ++c) {
            const int column = min(first + c, columns - 1);
            const Byte *bytes = w + column * column_bytes<BITS>(blocks, block_log2) + (size_t)chunk * 4 * WORDS;
            stored[c] = load_chunk<ALIGNED, WORDS>(bytes, 4 * WORDS);
            scale[c] = Scale::widen(__ldg(scales + (size_t)column * blocks + block));
            zero[c] = TWO_TO_23 + zero_point<BITS>(zeros, column, blocks, block);
        }
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
            const int k = chunk * CHUNK + word * WORD;
            float values[COLUMNS_PER_BLOCK][WORD];
#pragma unroll
            for (int c = 0; c < COLUMNS_PER_BLOCK; ++c)
#pragma unroll
                for (int i = 0; i < WORD; ++i)
                    values[c][i] = less_zero<BITS>(stored[c].words[word], i, zero[c]) * scale[c];
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                float xs[WORD];
                load_floats<ALIGNED>(x + (size_t)row * inner + k, inner - k, xs);
#pragma unroll
                for (int c = 0; c < COLUMNS_PER_BLOCK; ++c)
#pragma unroll
                    for (int i = 0; i < WORD; ++i) sums[c][row] = fmaf(xs[i], values[c][i], sums[c][row]);
            }
        }
    }
    write_block_sums(sums, bias, y, columns);
}
