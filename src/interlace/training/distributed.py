"""Process groups for DeepSpeed: in this process, or one process per device under torchrun."""

import contextlib
import datetime
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALONE = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
_plain_linear: list[Any] = []  # torch's, before DeepSpeed puts its own there for the whole process
_TIMEOUT = datetime.timedelta(minutes=30)


def prepare() -> None:
    """Initialise torch.distributed and DeepSpeed for this process, once.

    Under torchrun the process joins its group. Otherwise it is a group of its own that opens no
    port, so that any number of jobs can start on one machine at the same time. On the CPU,
    DeepSpeed's shared-memory all-reduce is left out: it is compiled with g++ at the first start
    (40 s, and a second job meanwhile waits or fails), and gloo does the same work.
    """
    import torch
    import torch.distributed

    if not _plain_linear:
        _plain_linear.append(torch.nn.functional.linear)
    on_gpu = choose_accelerator()
    if not on_gpu:
        # Else DeepSpeed runs `numactl` for every bucket of gradients to count the devices.
        os.environ["LOCAL_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", "1")
    _leave_out_muon()
    with _without_stderr():
        import deepspeed
    from accelerate.state import AcceleratorState, PartialState
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    # DeepSpeed 0.19 calls collectives that torch 2.14 renames: two lines for each step otherwise.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # deepspeed.comm asks this table whether the op can be built here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    if not under_torchrun():
        # accelerate and DeepSpeed read these; the store is in memory, the port is never opened.
        os.environ.update({key: str(value) for key, value in _ALONE.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not torch.distributed.is_initialized():
        if under_torchrun():
            if on_gpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
        else:
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(
                backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT
            )
    if deepspeed.comm.comm.cdb is None:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    # Left to itself, accelerate 1.15 takes DeepSpeed on the CPU for one process whatever the
    # group's size, and every rank would train on all the data. Naming the backend mends that; the
    # Trainer then has to use this state (`use_configured_state`).
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        state = PartialState(backend=None if on_gpu else backend)
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
    assert state.num_processes == torch.distributed.get_world_size()


def choose_accelerator() -> bool:
    """Tell DeepSpeed, before it looks for itself, to use the CPU if there is no GPU; is there one?"""
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    return torch.cuda.is_available()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    # DeepSpeed tries at import which of its kernels could be built; the linker's complaints about
    # libraries that nothing here needs would look like an error.
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _leave_out_muon() -> None:
    # ZeRO-3 asks whether the optimizer is DeepSpeed's Muon, whose module brings torch.compile's
    # whole stack with it: seconds at every start, for an optimizer that is never used here.
    name = "deepspeed.runtime.zero.muon.muon_optimizer"
    if name not in sys.modules:
        stub = types.ModuleType(name)
        stub.MuonWithAuxAdam = type("MuonWithAuxAdam", (), {})
        sys.modules[name] = stub


def gather_by_layer(model: "PreTrainedModel") -> None:
    """Let ZeRO-3 gather the weights of a frozen layer at once, not of each of its linear maps.

    Of many small layers on the CPU a training step otherwise spends half of its time in hooks.
    Trained layers stay as they are: DeepSpeed 0.19 loses the gradients of a layer gathered at once
    whose input needs none.
    """
    from deepspeed.utils import set_z3_leaf_module

    for module in model.modules():
        frozen = not any(weight.requires_grad for weight in module.parameters())
        if frozen and type(module).__name__ in model._no_split_modules:
            set_z3_leaf_module(module, True)


def world() -> tuple[int, int]:
    """Return how many ranks torchrun started and which one this is; 1 and 0 without it."""
    if not under_torchrun():
        return 1, 0
    return int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


def leave() -> None:
    """Undo what `prepare` set in a process that is a group of its own, so that a later run without
    DeepSpeed is not taken for one of several ranks. The group stays: DeepSpeed keeps it."""
    if under_torchrun():
        return
    import torch
    from accelerate.state import AcceleratorState

    ours = (*_ALONE, "MASTER_ADDR", "MASTER_PORT")
    for key in [key for key in os.environ if key in ours or key.startswith("ACCELERATE_")]:
        del os.environ[key]
    AcceleratorState._reset_state(reset_partial_state=True)
    if _plain_linear:  # DeepSpeed's own keeps what frozen layers get, which costs others memory
        torch.nn.functional.linear = _plain_linear[0]


def under_torchrun() -> bool:
    """Say whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
