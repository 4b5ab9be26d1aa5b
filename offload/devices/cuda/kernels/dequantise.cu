// Block-quantised columns to a dense panel, out[columns, inner], for a library's GEMM: many rows of x.
//
// blockIdx.x is the column, a thread has one word of codes.

#include "blocks.cuh"

template <int BITS, typename Scale, typename Out, bool ALIGNED>
__global__ void __launch_bounds__(MAX_THREADS)
dequantise(const Byte *__restrict__ w, const typename Scale::Stored *__restrict__ scales,
           const Byte *__restrict__ zeros, typename Out::Stored *__restrict__ out, int inner, int blocks,
           int block_log2) {
    constexpr int COUNT = PER_WORD<BITS>;
    const int column = blockIdx.x, word = blockIdx.y * blockDim.x + threadIdx.x, k = word * COUNT;
    if (k >= inner) return;
    const int block = k >> block_log2;
    const Byte *bytes = w + column * column_bytes<BITS>(blocks, block_log2) + (size_t)word * 4;
    const unsigned stored = load_chunk<ALIGNED, 1>(bytes, 4).words[0];
    const float scale = Scale::widen(__ldg(scales + (size_t)column * blocks + block));
    const float zero = TWO_TO_23 + zero_point<BITS>(zeros, column, blocks, block);
    typename Out::Stored *to = out + (size_t)column * inner + k;
    constexpr int BYTES = COUNT * sizeof(typename Out::Stored);
    struct alignas(!ALIGNED ? sizeof(typename Out::Stored) : BYTES > 16 ? 16 : BYTES) {
        typename Out::Stored at[COUNT];
    } values;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) values.at[i] = Out::narrow(less_zero<BITS>(stored, i, zero) * scale);
    if constexpr (ALIGNED) {
        *(decltype(values) *)to = values;
    } else {
        for (int i = 0; i < COUNT && k + i < inner; ++i) to[i] = values.at[i];
    }
}
