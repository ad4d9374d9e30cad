"""How much memory is free for what a stage would like to keep."""

import psutil  # comes with accelerate
import torch


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
