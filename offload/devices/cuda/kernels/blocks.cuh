// Block-quantised weights along `inner`, as ONNX MatMulNBits stores them: value = (code - zero point) * scale.
//
// codes: Byte[columns, blocks, block * BITS / 8], the low nibble first; scales: [columns, blocks]; zero points:
// Byte[columns, ceil(blocks * BITS / 8)] packed likewise, or null, which means 8 or 128. Blocks hold
// 2**block_log2 codes, 16 at least; the last one is padded.

#include "common.cuh"

template <int BITS> constexpr int PER_WORD = 32 / BITS; // codes in 4 bytes

template <int BITS> __device__ inline int zero_point(const Byte *zeros, int column, int blocks, int block) {
    if (!zeros) return 1 << (BITS - 1);
    if constexpr (BITS == 8) return __ldg(zeros + (size_t)column * blocks + block);
    return __ldg(zeros + (size_t)column * ((blocks + 1) / 2) + block / 2) >> block % 2 * 4 & 15;
}

// Code i of a word, less its zero point: exact in fp32. A code in the low mantissa bits of 2**23 is 2**23 plus
// that code, which is faster than a conversion; `zero` is 2**23 plus the zero point.
template <int BITS> __device__ inline float less_zero(unsigned word, int i, float zero) {
    return __uint_as_float(0x4b000000u | (word >> i * BITS & ((1u << BITS) - 1))) - zero;
}

constexpr float TWO_TO_23 = 8388608.0f;

// The bytes of one output column's codes.
template <int BITS> __device__ inline size_t column_bytes(int blocks, int block_log2) {
    return ((size_t)blocks << block_log2) * BITS / 8;
}
