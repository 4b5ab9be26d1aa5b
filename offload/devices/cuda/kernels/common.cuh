// What all kernels here share: number formats, loads, and the sum of what the threads of a block have found.
//
// NVRTC compiles this without any header. A C++ compiler does too, behind tests/kernels/cuda/shim/shim.h; what only a
// GPU can do stands behind __CUDACC_RTC__ and has an exact twin beside it.

#ifdef __CUDACC_RTC__
#define SHARED_MEMORY(type, name) extern __shared__ __align__(16) type name[]
#endif

typedef unsigned char Byte;

constexpr int MAX_THREADS = 128;     // of a block; the launch may take fewer, in whole warps
constexpr int COLUMNS_PER_BLOCK = 4; // output columns that share one pass over x
constexpr unsigned ALL_LANES = 0xffffffffu;

// Blocks that a multiprocessor has to hold at least, which caps the registers of a thread at 96, 128 or 168, and 255
// without alignment: more rows need more sums at hand. Left to itself, ptxas would rather spill a few registers than
// use more than 128.
__device__ constexpr int blocks_at_once(int rows, bool aligned) {
    return !aligned ? 2 : rows <= 2 ? 5 : rows <= 4 ? 4 : 3;
}

__device__ inline float widen_fp16(unsigned short bits) {
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    const unsigned sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13); // infinity, NaN
    // 2**112 moves the exponent from fp16's bias to fp32's, for subnormal numbers as well.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * __uint_as_float(0x77800000u)));
#endif
}

// To the nearest fp16, ties to even; beyond its range infinity.
__device__ inline unsigned short round_to_fp16(float value) {
#ifdef __CUDACC_RTC__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu;             // what the GPU makes of every NaN
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;     // 65520 and more
    if (magnitude < 0x38800000u) {                           // subnormal: fp32 addition rounds where fp16 ends
        const float shifted = __uint_as_float(magnitude) + 0.5f;
        return sign | (__float_as_uint(shifted) - 0x3f000000u);
    }
    return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
#endif
}

// To the nearest bf16, ties to even; beyond its range infinity. Not every GPU has an instruction for it.
__device__ inline unsigned short round_to_bf16(float value) {
    const unsigned bits = __float_as_uint(value), high = bits >> 16;
    if ((bits & 0x7fffffffu) > 0x7f800000u) return high | 0x40u; // a NaN, which rounding could carry to infinity
    return bits + 0x7fffu + (high & 1u) >> 16;
}

// The formats that weights and scales are stored in.
struct Fp32 {
    typedef float Stored;
    static __device__ inline float widen(Stored stored) { return stored; }
    static __device__ inline Stored narrow(float value) { return value; }
};

struct Fp16 {
    typedef unsigned short Stored;
    static __device__ inline float widen(Stored stored) { return widen_fp16(stored); }
    static __device__ inline Stored narrow(float value) { return round_to_fp16(value); }
};

struct Bf16 { // the upper half of an fp32
    typedef unsigned short Stored;
    static __device__ inline float widen(Stored stored) { return __uint_as_float((unsigned)stored << 16); }
    static __device__ inline Stored narrow(float value) { return round_to_bf16(value); }
};

// Consecutive bytes of a weight, as little-endian words.
template <int WORDS> struct Chunk {
    unsigned words[WORDS];
};

// Read the chunk at `from`, of which `valid` elements exist; the rest is zero. ALIGNED promises that all of them
// do and that the address is a multiple of the chunk's size.
template <bool ALIGNED, int WORDS, typename Element>
__device__ inline Chunk<WORDS> load_chunk(const Element *from, int valid) {
    Chunk<WORDS> chunk = {};
    if constexpr (ALIGNED && WORDS == 4) {
        const uint4 loaded = __ldg((const uint4 *)from);
        chunk = {{loaded.x, loaded.y, loaded.z, loaded.w}};
    } else if constexpr (ALIGNED && WORDS == 2) {
        const uint2 loaded = __ldg((const uint2 *)from);
        chunk = {{loaded.x, loaded.y}};
    } else if constexpr (ALIGNED) {
        chunk = {{__ldg((const unsigned *)from)}};
    } else {
        constexpr int PER_WORD = 4 / sizeof(Element);
#pragma unroll
        for (int i = 0; i < WORDS * PER_WORD; ++i)
            if (i < valid) chunk.words[i / PER_WORD] |= (unsigned)__ldg(from + i) << i % PER_WORD * 8 * sizeof(Element);
    }
    return chunk;
}

// Element i of a chunk of fp16 or bf16 numbers.
template <typename Format> __device__ inline float widened(const Chunk<4> &chunk, int i) {
    return Format::widen((unsigned short)(chunk.words[i / 2] >> i % 2 * 16));
}

// Read COUNT floats, of which `valid` exist; the rest is zero. ALIGNED is as for load_chunk, with 16 bytes.
template <bool ALIGNED, int COUNT>
__device__ inline void load_floats(const float *from, int valid, float (&to)[COUNT]) {
    if constexpr (ALIGNED) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const float4 loaded = __ldg((const float4 *)(from + i));
            to[i] = loaded.x, to[i + 1] = loaded.y, to[i + 2] = loaded.z, to[i + 3] = loaded.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) to[i] = i < valid ? __ldg(from + i) : 0.0f;
    }
}

// Round 4 numbers and write them with one store; `to` is a multiple of 8 bytes.
template <typename Format> __device__ inline void store_halves(const float (&values)[4], unsigned short *to) {
    const unsigned low = Format::narrow(values[0]) | (unsigned)Format::narrow(values[1]) << 16;
    const unsigned high = Format::narrow(values[2]) | (unsigned)Format::narrow(values[3]) << 16;
    *(uint2 *)to = {low, high};
}

__device__ inline float sum_of_warp(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// Add up what the threads of a block found for COLUMNS_PER_BLOCK columns and ROWS rows, always in the same order,
// and write it to this split's part of y. Needs warps * COLUMNS_PER_BLOCK * ROWS floats of shared memory.
template <int ROWS>
__device__ inline void write_block_sums(const float (&sums)[COLUMNS_PER_BLOCK][ROWS], const float *bias, float *y,
                                        int columns) {
    SHARED_MEMORY(float, warp_sums);
    constexpr int VALUES = COLUMNS_PER_BLOCK * ROWS;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
        const float sum = sum_of_warp(sums[i % COLUMNS_PER_BLOCK][i / COLUMNS_PER_BLOCK]);
        if (threadIdx.x % 32 == 0) warp_sums[warp * VALUES + i] = sum;
    }
    __syncthreads();
    const int i = threadIdx.x, column = blockIdx.x * COLUMNS_PER_BLOCK + i % COLUMNS_PER_BLOCK;
    if (i < VALUES && column < columns) {
        float sum = bias ? bias[column] : 0.0f;
        for (int part = 0; part < warps; ++part) sum += warp_sums[part * VALUES + i];
        const int row = blockIdx.y * ROWS + i / COLUMNS_PER_BLOCK;
        y[(size_t)row * columns + column] = sum;
    }
}
