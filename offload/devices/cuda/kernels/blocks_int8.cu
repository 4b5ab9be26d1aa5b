// As blocks_float.cu, with x quantised to int8 by quantise_rows: within a chunk the sum is an exact int32.
//
// x: int8[ROWS, blocks * block], padded with zeros; x_scales: fp32[ROWS, blocks].

#include "blocks.cuh"

template <int BITS, typename Scale, int WORDS, int ROWS, bool ALIGNED>
__global__ void __launch_bounds__(MAX_THREADS, blocks_at_once(ROWS, ALIGNED))
multiply_blocks_int8(const Byte *__restrict__ w, const typename Scale::Stored *__restrict__ scales,
                     const Byte *__restrict__ zeros, const signed char *__restrict__ x,
                     const float *__restrict__ x_scales, const float *__restrict__ bias, float *__restrict__ y,
                     int columns, int inner, int blocks, int block_log2, int chunks_per_split) {
    constexpr int CHUNK = WORDS * PER_WORD<BITS>, X_WORDS = CHUNK / 4;
    const int first = blockIdx.x * COLUMNS_PER_BLOCK;
    const size_t x_row_bytes = (size_t)blocks << block_log2;
    float sums[COLUMNS_PER_BLOCK][ROWS] = {};
    const int begin = blockIdx.y * chunks_per_split;
    const int end = min(begin + chunks_per_split, (inner + CHUNK - 1) / CHUNK);
    for (int chunk = begin + threadIdx.x; chunk < end; chunk += blockDim.x) {
        const int block = chunk * CHUNK >> block_log2;
        // Four signed bytes to a word. Of int4 the even codes of 8 come first, then the odd ones.
        int values[COLUMNS_PER_BLOCK][X_WORDS], zero[COLUMNS_PER_BLOCK];
        float scale[COLUMNS_PER_BLOCK];
#pragma unroll
        for (int c = 0; c < COLUMNS_PER_BLOCK; ++c) {
            const int column = min(first + c, columns - 1);
            const Byte *bytes = w + column * column_bytes<BITS>(blocks, block_log2) + (size_t)chunk * 4 * WORDS;
            const Chunk<WORDS> stored = load_chunk<ALIGNED, WORDS>(bytes, 4 * WORDS);
            scale[c] = Scale::widen(__ldg(scales + (size_t)column * blocks + block));
            zero[c] = zero_point<BITS>(zeros, column, blocks, block) - (BITS == 8 ? 128 : 0);
#pragma unroll
            for (int i = 0; i < WORDS; ++i) {
                if constexpr (BITS == 8) {
                    values[c][i] = stored.words[i] ^ 0x80808080u; // less 128
                } else {
                    values[c][2 * i] = stored.words[i] & 0x0f0f0f0fu;
                    values[c][2 * i + 1] = stored.words[i] >> 4 & 0x0f0f0f0fu;
                }
            }
        }
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const Byte *from = (const Byte *)x + row * x_row_bytes + (size_t)chunk * CHUNK;
            int xs[X_WORDS], total = 0;
#pragma unroll
            for (int i = 0; i < X_WORDS; i += 4) {
                const Chunk<4> loaded = load_chunk<true, 4>(from + 4 * i, 16);
#pragma unroll
                for (int j = 0; j < 4; ++j) xs[i + j] = loaded.words[j];
            }
            if constexpr (BITS == 4) {
#pragma unroll
                for (int i = 0; i < X_WORDS; i += 2) {
                    const unsigned even = __byte_perm(xs[i], xs[i + 1], 0x6420);
                    xs[i + 1] = __byte_perm(xs[i], xs[i + 1], 0x7531);
                    xs[i] = even;
                }
            }
#pragma unroll
            for (int i = 0; i < X_WORDS; ++i) total = __dp4a(xs[i], 0x01010101, total);
            const float x_scale = __ldg(x_scales + row * blocks + block);
#pragma unroll
            for (int c = 0; c < COLUMNS_PER_BLOCK; ++c) {
                int dot = -zero[c] * total;
#pragma unroll
                for (int i = 0; i < X_WORDS; ++i) dot = __dp4a(values[c][i], xs[i], dot);
                sums[c][row] = fmaf((float)dot, scale[c] * x_scale, sums[c][row]);
            }
        }
    }
    write_block_sums(sums, bias, y, columns);
}
