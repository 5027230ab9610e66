"""How libraries say in words that memory ran out: the same for the runner, which must not import
torch, and for the training toolkit, which must not import the runner.
"""

from __future__ import annotations

from typing import Final

CUDA: Final = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 3.25 GiB is free."
)
DEVICE: Final = (
    CUDA,  # torch before 1.13 had no class for it
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cudaErrorMemoryAllocation: out of memory",
    "HIP out of memory. Tried to allocate 1 GiB",
    "HIP error: out of memory",
    "XPU out of memory. Tried to allocate 1 GiB",
    "MPS backend out of memory (MPS allocated: 1 GB)",
    "[CUresult.CUDA_ERROR_OUT_OF_MEMORY] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
)
HOST: Final = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried",
    "DataLoader worker (pid 4711) is killed by signal: Killed. ",
)
NEITHER: Final = (
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "XLA: RESOURCE_EXHAUSTED",  # quotas of a cloud are exhausted too
    "the memory of the model is out of date",
)
