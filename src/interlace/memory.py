"""Memory of a device: how much of it is free, and whether it was it that ran out."""

import psutil  # comes with accelerate
import torch

# What the allocators of torch (CPU, CUDA) and of CUDA's libraries say; all but the first of them
# come as a plain RuntimeError.
_SIGNS = (
    "CUDA out of memory",
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def free_bytes(device: torch.device | str, limit_mb: float | None = None) -> int:
    """Return the bytes that this process can still take on `device`.

    On a GPU, its free memory and what torch holds there without using it. On a CPU, what the
    machine has available, but no more than `limit_mb` (what the job asked for) leaves.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    if limit_mb is None:
        return free
    return max(0, min(free, int(limit_mb * 1e6) - psutil.Process().memory_info().rss))


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an allocation failed: of torch on a GPU or a CPU, or of Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
