"""Attention within each sample of a packed row (`interlace.data.packing`).

Shapes: H query heads, K key-value heads, T tokens of a row, t of one sample, D head size, S samples.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

from interlace.decoder.layers import decoder_stack, text_config
from interlace.errors import InputError

PER_SAMPLE = "interlace_per_sample"  # the name that transformers knows our function by
# Implementations by what the config calls them: ours, or transformers' own, which find the samples
# by positions that start anew.
IMPLEMENTATIONS = {
    "auto": PER_SAMPLE,
    "varlen": PER_SAMPLE,
    "sdpa": "sdpa",
    "flex_attention": "flex_attention",
    "flash_attention_2": "flash_attention_2",
}
# Model types whose packed rows are proven, by test, to do what each sample does alone.
PACKABLE = frozenset(
    {
        *("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl", "llava", "llava_onevision"),
        *("internvl", "smolvlm", "idefics3"),
        *("llama", "mistral", "qwen2", "qwen3", "gemma3_text"),
    }
)
_CAUSAL = {"full_attention", "sliding_attention"}
# Frequencies that follow the longest position of the row, so that one sample changes another.
_DYNAMIC_ROPE = ("dynamic", "longrope")

Kernel = Callable[..., torch.Tensor]


def packing_refusal(whole: PreTrainedConfig) -> str | None:
    """Return why samples of a config's model cannot share a row, in one line, or None if they can."""
    kind, config = whole.model_type, text_config(whole)
    if kind == "gemma3":
        return "gemma3: the tokens of an image see each other both ways, which needs a mask"
    if kind not in PACKABLE:
        return f"{kind}: packed rows are not tested for this family"
    others = set(getattr(config, "layer_types", None) or ()) - _CAUSAL
    if others or getattr(config, "use_bidirectional_attention", False):
        return f"{kind}: attention other than causal ({', '.join(sorted(others)) or 'both ways'})"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    if kinds & set(_DYNAMIC_ROPE):
        return f"{kind}: rotary frequencies that depend on the longest sample of a row"
    return None


class PackedAttention:
    """Makes a model's decoder attend within each sample of a packed row; the vision tower does not
    change.

    `auto` and `varlen` run a variable-length flash kernel on a GPU in 16 bit, and SDPA sample by
    sample elsewhere (over ten times as fast on a CPU as SDPA under a block mask). `sdpa`,
    `flex_attention` and `flash_attention_2` are transformers' own, by the row's positions.

    `set` before each forward; what it says holds until the next `set`, through the backward pass
    and its recomputed activations. It is said to the whole process: layers that two models share,
    and a teacher that runs on the student's rows, need it said once, though each model needs a
    `PackedAttention` of its own. With `auto` and `varlen` a forward over anything but such a row
    is an error until `restore`.

    Raises InputError for an implementation that does not exist or is not installed, and where
    `packing_refusal` has a reason.
    """

    def __init__(self, model: PreTrainedModel, implementation: str = "auto") -> None:
        why = packing_refusal(model.config) or unavailable(implementation)
        if why is not None:
            raise InputError(f"packed rows with attention {implementation!r}: {why}")
        self.implementation = implementation
        stack = decoder_stack(model)
        # Copied layers (a teacher's) may each have a config of their own.
        configs = [module.config for module in stack.modules() if hasattr(module, "config")]
        # What another model shares and has set already is the other's to restore.
        self._before: list[tuple[Any, str]] = []
        for config in configs:
            if config._attn_implementation != IMPLEMENTATIONS[implementation]:
                self._before.append((config, config._attn_implementation))
                config._attn_implementation = IMPLEMENTATIONS[implementation]

    def set(self, starts: torch.Tensor | Sequence[int]) -> None:
        """Say where the samples of the next row start, with the row's end: (S + 1,), ascending."""
        global _row
        numbers = starts.tolist() if isinstance(starts, torch.Tensor) else list(starts)
        assert len(numbers) > 1, "a row needs at least one sample"
        assert numbers[0] == 0, numbers
        assert all(a < b for a, b in pairwise(numbers)), numbers
        _row = _Row(numbers)

    def restore(self) -> None:
        """Give the decoder back the attention it had, for rows that are not packed."""
        global _row
        for config, before in self._before:
            config._attn_implementation = before
        _row = None


class _Row:
    """Where the samples of a packed row start and how long they are."""

    def __init__(self, starts: list[int]) -> None:
        self.starts, self.total = starts, starts[-1]
        self.lengths = [end - start for start, end in pairwise(starts)]
        self.longest = max(self.lengths)
        self._on: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """Return the starts as int32 (S + 1,) on `device`, copied there once."""
        if device not in self._on:
            self._on[device] = torch.tensor(self.starts, dtype=torch.int32, device=device)
        return self._on[device]


_row: _Row | None = None


@torch.compiler.disable
def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return (1, T, H, D) of query (1, H, T, D), key and value (1, K, T, D): causal, per sample.

    `sliding_window` counts the tokens that one sees, itself included.
    """
    row = _row
    assert row is not None, "PackedAttention.set was not called before this forward"
    assert query.shape[0] == 1, f"a packed row is a batch of one, not {query.shape[0]}"
    assert query.shape[2] == row.total, f"{query.shape[2]} tokens, but samples end at {row.total}"
    kernel = _kernel(query.device, dropout)
    dtype = _computed_in(query)
    if kernel is None or not _fits(dtype, query.shape[3]):
        return _attend_in_turn(
            module, query, key, value, row, sliding_window, dropout, scaling, kwargs
        ), None
    out_THD = kernel(
        *(states[0].transpose(0, 1).to(dtype) for states in (query, key, value)),
        starts=row.on(query.device),
        longest=row.longest,
        scale=scaling,
        window=(-1 if sliding_window is None else sliding_window - 1, 0),
    )
    return out_THD[None], None


def _attend_in_turn(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: _Row,
    window: int | None,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Return transformers' SDPA of every sample, one after the other: (1, T, H, D)."""
    of_samples = zip(*(x.split(row.lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for query_1HtD, key_1KtD, value_1KtD in of_samples:
        length = query_1HtD.shape[2]
        mask = None
        if window is not None and length > window:
            seen = torch.ones(length, length, dtype=torch.bool, device=query.device)
            mask = seen.tril().triu(1 - window)[None, None]
        output, _ = sdpa_attention_forward(
            module,
            query_1HtD,
            key_1KtD,
            value_1KtD,
            mask,
            dropout=dropout,
            scaling=scaling,
            **kwargs,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def _computed_in(states: torch.Tensor) -> torch.dtype:
    """Return the dtype of attention: autocast does not reach the kernels by itself."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


def _fits(dtype: torch.dtype, head_size: int) -> bool:
    """Say whether the kernels take states of this type and size."""
    return dtype in (torch.float16, torch.bfloat16) and head_size in range(8, 257, 8)


def _kernel(device: torch.device, dropout: float) -> Kernel | None:
    """Return a variable-length flash kernel for `device`: torch's, else flash_attn's, else None."""
    # torch's has no dropout; flash kernels begin with compute capability 8.
    if device.type != "cuda" or dropout or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return _torch_kernel() or _flash_attn_kernel()


@cache
def _torch_kernel() -> Kernel | None:
    """Return torch's variable-length attention, or None before 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    shares_heads = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in 2.11

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        more: dict[str, Any] = {"enable_gqa": groups > 1} if shares_heads else {}
        if groups > 1 and not shares_heads:
            key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        return varlen_attn(
            query,
            key,
            value,
            starts,
            starts,
            longest,
            longest,
            scale=scale,
            window_size=window,
            **more,
        )

    return kernel


@cache
def _flash_attn_kernel() -> Kernel | None:
    """Return the package flash_attn's, where it is installed."""
    if not is_flash_attn_2_available():
        return None
    from flash_attn import flash_attn_varlen_func

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        return flash_attn_varlen_func(
            query,
            key,
            value,
            starts,
            starts,
            longest,
            longest,
            softmax_scale=scale,
            causal=True,
            window_size=window,
        )

    return kernel


def _no_mask(attention_mask: torch.Tensor | None = None, **_: Any) -> None:
    """Make no mask: `_attend` needs none. One that is given would be lost, so it is refused."""
    assert attention_mask is None, "a packed row has no padding, so no attention_mask"


def unavailable(implementation: str) -> str | None:
    """Return why packed rows cannot be had with an implementation on this machine, or None."""
    if implementation not in IMPLEMENTATIONS:
        return f"choose one of {', '.join(IMPLEMENTATIONS)}"
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        return "flash_attn is not installed or there is no GPU; use auto"
    if implementation == "flex_attention" and not torch.cuda.is_available():
        return "it has no backward pass without a GPU; use auto"
    return None


def without_kernel(config: PreTrainedConfig, precision: str) -> str | None:
    """Return why `auto` and `varlen` run SDPA sample by sample on this machine, or None."""
    text = text_config(config)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if _kernel(device, 0.0) is None:
        return "no kernel: it needs a GPU of compute capability 8 or more"
    if not _fits(getattr(torch, precision), size):
        return f"no kernel for {precision} and heads of {size}"
    return None


AttentionInterface.register(PER_SAMPLE, _attend)
AttentionMaskInterface.register(PER_SAMPLE, _no_mask)
