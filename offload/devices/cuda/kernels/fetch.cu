// Bytes of pinned host memory to the device, read over the bus by a kernel, which stands in no line for a copy engine.
//
// A thread has 16 bytes, in one load where both ends are aligned; a warp's are side by side.

#include "common.cuh"

__global__ void __launch_bounds__(MAX_THREADS)
fetch(const Byte *__restrict__ from, Byte *__restrict__ to, long long nbytes) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 16, left = nbytes - at;
    if (left <= 0) return;
    if (left >= 16 && ((size_t)from | (size_t)to) % 16 == 0) {
        *(uint4 *)(to + at) = __ldg((const uint4 *)(from + at));
        return;
    }
    for (int i = 0; i < 16 && i < left; ++i) to[at + i] = __ldg(from + at + i);
}
