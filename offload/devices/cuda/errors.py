"""Reads CUDA's error numbers (CUDA runtime API, enum cudaError; cuBLAS, enum cublasStatus_t)."""

NO_MEMORY = 2  # cudaErrorMemoryAllocation
NO_DEVICE = 100  # cudaErrorNoDevice

# After these no call succeeds any more in this process: the context is corrupt, or the GPU is gone.
LOST = frozenset(
    {
        3,  # cudaErrorInitializationError
        4,  # cudaErrorCudartUnloading
        46,  # cudaErrorDevicesUnavailable
        NO_DEVICE,
        101,  # cudaErrorInvalidDevice
        201,  # cudaErrorDeviceUninitialized
        214,  # cudaErrorECCUncorrectable
        220,  # cudaErrorNvlinkUncorrectable
        226,  # cudaErrorContained
        700,  # cudaErrorIllegalAddress
        702,  # cudaErrorLaunchTimeout
        709,  # cudaErrorContextIsDestroyed
        710,  # cudaErrorAssert
        714,  # cudaErrorHardwareStackError
        715,  # cudaErrorIllegalInstruction
        716,  # cudaErrorMisalignedAddress
        717,  # cudaErrorInvalidAddressSpace
        718,  # cudaErrorInvalidPc
        719,  # cudaErrorLaunchFailure
        999,  # cudaErrorUnknown, as when a GPU has fallen off the bus
    }
)

CUBLAS_NO_MEMORY = 3  # CUBLAS_STATUS_ALLOC_FAILED
# CUBLAS_STATUS_MAPPING_ERROR, _EXECUTION_FAILED and _INTERNAL_ERROR are mostly a CUDA error that cuBLAS does not name;
# _INVALID_VALUE, _ARCH_MISMATCH and _NOT_SUPPORTED a matrix that it does not multiply on this GPU: the CPU does.
CUBLAS_FAILED = frozenset({7, 8, 11, 13, 14, 15})
