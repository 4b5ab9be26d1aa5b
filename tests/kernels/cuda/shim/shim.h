// CUDA C on a CPU, for tests: what the kernels use of it, as C++. The threads of a block are fibers of one thread,
// so this shows right and wrong results, and says nothing about speed or the GPU's order of memory accesses.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define SHARED_MEMORY(type, name) type *name = (type *)shim::shared_memory()

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
// Everything here is called from within a fiber.
void *shared_memory();                           // of the block; holds NaN when the block begins
void access();                                   // a memory access, where a schedule may switch threads
void block_barrier();                            // all threads of the block
uint64_t exchange(unsigned mask, uint64_t value, unsigned lane); // all lanes of the warp: the value of `lane`
int run(const unsigned *grid, unsigned threads, size_t shared_bytes, int schedule, void (*body)(void **), void **args);

template <typename... Parameters> struct Kernel {
    template <void (*KERNEL)(Parameters...)> static void body(void **args) {
        int i = 0;
        // Braces fix the order of evaluation.
        struct Call {
            Call(Parameters... parameters) { KERNEL(parameters...); }
        } called{*(Parameters *)args[i++]...};
        (void)called;
    }
};
template <typename... Parameters> Kernel<Parameters...> parameters_of(void (*)(Parameters...));
} // namespace shim

// A C function that launches a kernel with the addresses of its arguments, as cuLaunchKernel has them.
#define LAUNCHER(name, ...)                                                                                            \
    extern "C" int name(const unsigned *grid, unsigned threads, size_t shared_bytes, int schedule, void **args) {      \
        using Kernel = decltype(shim::parameters_of(__VA_ARGS__));                                                     \
        return shim::run(grid, threads, shared_bytes, schedule, Kernel::body<__VA_ARGS__>, args);                      \
    }

inline void __syncthreads() { shim::block_barrier(); }

template <typename T> T __ldg(const T *from) {
    shim::access();
    return *from;
}

template <typename T> T __shfl_xor_sync(unsigned mask, T value, int distance) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shim::exchange(mask, bits, threadIdx.x % 32 ^ distance);
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int8_t)((unsigned)a >> i) * (int8_t)((unsigned)b >> i);
    return c;
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline int __float2int_rn(float value) { // NaN is 0, and what is too large the largest int
    if (value != value) return 0;
    if (value >= 2147483648.0f) return INT32_MAX;
    return value < -2147483648.0f ? INT32_MIN : (int)rintf(value);
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
