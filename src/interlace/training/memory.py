"""What training will need of memory, by part, before any of it is taken; and what fits.

Letters: D hidden size, F the MLP's inner size, Q and K the widths of all query and all key heads,
V vocabulary, s bytes of an element in the computation's precision. GB is 10^9 bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from interlace.training.head import CHUNK_BYTES
from interlace.training.recipe import Recipe
from interlace.training.shape import ModelShape

SHARE = 0.9  # of the free memory that an estimate may fill; the rest is fragments and the driver's
ALWAYS, VISION, STEP, HOST = "always", "vision tower", "optimizer step", "main memory"
SAVE = "proof of the save"
PASS, LOSS, LAYER = "pass", "pass, loss", "pass, layers"
# Of these one is there at a time, besides what is always there.
_MOMENTS = ((VISION,), (PASS, LOSS), (PASS, LAYER), (STEP,), (SAVE,))
_SHARDINGS = {"none": "plain on one device", "zero3": "ZeRO-3", "zero3_offload": "ZeRO-3 offload"}
# DeepSpeed's defaults, in elements: weights gathered at once, and stepped at once.
_MAX_LIVE, _SUB_GROUP = 10**9, 10**9
_REDUCE_BUCKET = 16_777_216  # config/deepspeed/*.json


class Load(NamedTuple):
    """What goes through the model at once: `rows` of `length` tokens (one row where packed), all
    of which may have a label or stand for an image."""

    rows: int
    length: int


@dataclass(frozen=True)
class Part:
    """One thing that takes memory, and when: a constant of this module.

    `ALWAYS` stays; `PASS` from the forward to the backward of a micro-batch, `LOSS` while its loss
    is computed, `LAYER` while gradients go through the layers; `VISION` before, `STEP` after that;
    `SAVE` when the checkpoint is loaded again.
    `HOST` is main memory beside a GPU's.
    """

    name: str
    bytes: int
    when: str


@dataclass(frozen=True)
class MemoryEstimate:
    """What one rank needs, in bytes by part."""

    parts: tuple[Part, ...]

    def during(self, when: str) -> int:
        """Return the bytes of the parts of one moment."""
        return sum(part.bytes for part in self.parts if part.when == when)

    @property
    def device(self) -> int:
        """Return the peak on the device, in bytes."""
        return self.during(ALWAYS) + max(map(self._at, _MOMENTS))

    @property
    def host(self) -> int:
        """Return what is kept in main memory beside the device, in bytes."""
        return self.during(HOST)

    def _at(self, moment: tuple[str, ...]) -> int:
        return sum(self.during(when) for when in moment)

    def brief(self) -> str:
        """Return the peak and the parts that make it, in one line."""
        peak = (ALWAYS, *max(_MOMENTS, key=self._at))
        parts = [part for part in self.parts if part.bytes and part.when in peak]
        parts.sort(key=lambda part: -part.bytes)
        named = ", ".join(f"{part.name} {gigabytes(part.bytes)}" for part in parts)
        return f"{gigabytes(self.device)} GB ({named})"


def gigabytes(count: float) -> str:
    """Return bytes in GB, with the digits that matter."""
    value = count / 1e9
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}" if value >= 0.01 else "0.00"


def describe(estimate: MemoryEstimate) -> str:
    """Return a table with a line a part, its GB and when it is there, and the peak."""
    rows = [(p.name, gigabytes(p.bytes), p.when) for p in estimate.parts if p.bytes]
    rows.append(("peak of one device", gigabytes(estimate.device), ""))
    width = max(len(name) for name, *_ in rows)
    lines = [f"  {name:<{width}} {size:>7} GB  {when}".rstrip() for name, size, when in rows]
    return "\n".join(["memory of training (estimate)", *lines])


def estimate(
    shape: ModelShape,
    load: Load,
    recipe: Recipe,
    *,
    drop: Sequence[int] = (),
    tune: Sequence[int],
    head: bool = False,
    precision: str = "bfloat16",
    world: int = 1,
    distilled: str | None = None,
    fused: bool = False,
) -> MemoryEstimate:
    """Return what one of `world` ranks needs to tune layers `tune` without layers `drop`.

    Layers have the numbers of `shape`. `recipe` states checkpointing and sharding (not `auto`).
    `head`: an untied head is trained too. `distilled`: a teacher's `logits` or `hidden` states are
    learnt from. `fused`: AdamW's fused kernel, which needs no memory of its own.

    On a single device frozen weights are kept in `precision`, trained ones in float32 under
    autocast, with their copies in 16 bits during a pass. ZeRO-3 keeps all weights in `precision`
    and float32 masters of the trained ones (Rajbhandari et al. 2020, section 3.1: 2 + 2 + 12 bytes
    a parameter), all of it shared out over the ranks; offload keeps it in main memory.
    """
    assert "auto" not in (recipe.sharding, recipe.checkpointing), recipe
    size = {"float64": 8, "float32": 4}.get(precision, 2)
    wide = max(size, 4)
    kept = [index for index in range(len(shape.layers)) if index not in set(drop)]
    trained = sum(shape.layers[index] for index in tune) + (shape.head if head else 0)
    frozen = shape.total - sum(shape.layers[index] for index in drop) - trained

    parts = []
    if recipe.sharding == "none":
        parts += [
            Part("frozen weights", frozen * size, ALWAYS),
            Part("trained weights", trained * wide, ALWAYS),
            Part("gradients", trained * wide, ALWAYS),
            Part("AdamW states", trained * 2 * wide, ALWAYS),
            Part("16-bit copies of trained weights", trained * size * (size < 4), PASS),
            Part("AdamW's temporary copies", 0 if fused else trained * wide, STEP),
        ]
    else:
        parts += _sharded(frozen, trained, size, world, recipe.sharding == "zero3_offload")
    if distilled:
        copies = sum(shape.layers[index] for index in [*drop, *tune])
        parts.append(Part("teacher's own layers", copies * size, ALWAYS))
    first = min((kept.index(index) for index in tune), default=len(kept))
    tuned = {kept.index(index) for index in tune}
    parts += _activations(shape, load, recipe, size, len(kept), first, tuned)
    parts += _loss(shape, load, recipe, size, head, distilled, len(tune))
    parts += _vision(shape, load, recipe, size)
    return MemoryEstimate(tuple(parts))


def _sharded(frozen: int, trained: int, size: int, world: int, offload: bool) -> list[Part]:
    """Return the parts of ZeRO-3: DeepSpeed 0.19's defaults and the buckets of config/deepspeed."""
    where = HOST if offload else ALWAYS
    # A rank that is alone uses its own weights; else they are gathered, and pass through.
    gathered = min(_MAX_LIVE, frozen + trained) * size if world > 1 or offload else 0
    group = min(_SUB_GROUP, trained // world)
    return [
        Part("frozen weights", frozen * size // world, where),
        Part("trained weights", trained * (size + max(4, size)) // world, where),
        Part("gradients", trained * (4 if offload else size) // world, where),
        Part("AdamW states", trained * 2 * max(4, size) // world, where),
        Part("gathered weights and buckets", gathered + 2 * _REDUCE_BUCKET * size, PASS),
        Part("AdamW's temporary copies", group * 2 * max(4, size), HOST if offload else STEP),
        # Rank 0's. On a single device the states go and the model moves before that (`tune`).
        Part("checkpoint loaded again", (frozen + trained) * size, SAVE),
    ]


def _activations(
    shape: ModelShape,
    load: Load,
    recipe: Recipe,
    size: int,
    num_kept: int,
    first: int,
    tuned: set[int],
) -> list[Part]:
    """Return what the backward pass needs of the layers that are part of the graph.

    Bytes a token and layer, from what autograd saves of transformers' layers (Qwen3, Llama): each
    norm its input in float32; attention q, k, v, output and a logarithm a head; the MLP gate,
    silu(gate) and up. A tuned layer saves the inputs of its weights besides: of each norm's weight,
    of q, k, v (one tensor), of gate and up (one), of down; under autocast each of these five gets
    a copy in 16 bits of its own, as do the products of float32 norms.
    """
    D, F, Q, K = shape.hidden, shape.mlp, shape.query, shape.key
    tokens = load.rows * load.length
    in_heads = Q + K if shape.head_norms else 0
    # With a mask, keys and values are repeated for all heads.
    masked = recipe.attention == "sdpa" or not recipe.packing
    wide = max(4, size)
    frozen_layer = wide * (shape.layer_norms * D + in_heads)
    frozen_layer += size * (2 * Q + 2 * (Q if masked else K) + 3 * F) + 4 * shape.num_heads
    inputs = (5 if recipe.sharding == "none" and size < 4 else 2) * D + F
    tuned_layer = frozen_layer + size * (shape.layer_norms * D + in_heads + inputs)
    recomputed_from = {"none": num_kept, "all": 0}.get(recipe.checkpointing, first)
    # SDPA adds a mask as numbers, which every layer makes and saves for itself.
    mask = load.rows * load.length**2 * size if masked else 0
    saved = tokens * (wide + size) * D  # the final norm's input, the head's
    for index in range(0 if recipe.graph == "all" else first, num_kept):
        whole = tokens * (tuned_layer if index in tuned else frozen_layer) + mask
        saved += tokens * size * D if index >= recomputed_from else whole
    at_work = size * 3 * F + wide * 4 * D  # gradients of one layer's intermediate results
    if recipe.checkpointing != "none":
        at_work += tuned_layer if tuned else frozen_layer
    return [
        Part("activations", saved, PASS),
        Part("one layer at work", tokens * at_work + mask, LAYER),
    ]


def _loss(
    shape: ModelShape,
    load: Load,
    recipe: Recipe,
    size: int,
    head: bool,
    distilled: str | None,
    num_tuned: int,
) -> list[Part]:
    """Return the logits' part: what cross-entropy as transformers computes it has alive at most.

    Of whole logits: themselves in the computation's precision, and in float32 their log-softmax,
    its gradient and theirs, and a mask: measured 14.5 bytes a logit in 16 bits, 17 in float32. A chunk needs about three times its float32 logits, and keeps the gradient of (N, D).
    """
    tokens = load.rows * load.length
    if recipe.head in ("full", "supervised"):
        logits = tokens * shape.vocab * (15 if size == 2 else 4 * size + 1)
    else:
        logits = 3 * min(CHUNK_BYTES, tokens * shape.vocab * max(4, size))
        logits += tokens * shape.hidden * (size + max(4, size))
        logits += shape.head * max(4, size) if head else 0
    parts = [Part("logits", logits * (2 if distilled == "logits" else 1), LOSS)]
    if distilled:
        states = tokens * (1 + num_tuned if distilled == "hidden" else 1)
        parts.append(Part("teacher's states", states * shape.hidden * size, PASS))
    return parts


def _vision(shape: ModelShape, load: Load, recipe: Recipe, size: int) -> list[Part]:
    """Return the features of images, and what the frozen tower has alive while it makes them.

    Its largest block state a patch: q, k, v and, in float32, the rotations of q and k; or the MLP.
    """
    tokens = load.rows * load.length
    if not shape.vision:
        return []
    features = tokens * shape.hidden * size * (1 + shape.num_deepstack)
    parts = [Part("vision features", features, PASS)]
    if recipe.vision == "live":
        width, inner = shape.vision_hidden, shape.vision_mlp
        patch = max(size * 5 * width + 4 * 6 * width, size * 2 * (width + inner))
        parts.append(
            Part("vision tower", features + tokens * shape.patches_per_token * patch, VISION)
        )
    return parts


class Choice(NamedTuple):
    """How memory is spent, and the sentence that says why."""

    sharding: str
    checkpointing: str
    why: str
    estimate: MemoryEstimate


def choose_sharding(
    estimate_for: Callable[[str, str], MemoryEstimate],
    available: int,
    world: int,
    sharding: str = "auto",
    checkpointing: str = "auto",
    host_available: int | None = None,
) -> Choice:
    """Return the first way that fits in 90 % of `available` bytes of a device; what is set stays.

    `estimate_for(sharding, checkpointing)` is asked in this order: without checkpointing, with it
    from the first tuned layer on; on one device plain, else ZeRO-3; then ZeRO-3 with offload, where
    there is main memory beside the device (`host_available`, bytes of this rank; None on a CPU).
    Nothing is refused: where the last way does not fit either, it is taken and `why` says so.
    """
    shardings = [sharding]
    if sharding == "auto":
        shardings = ["none" if world == 1 else "zero3"]
        shardings += ["zero3_offload"] if host_available is not None else []
    ways = ["none", "tuned"] if checkpointing == "auto" else [checkpointing]
    candidates = [(s, c, estimate_for(s, c)) for s in shardings for c in ways]
    limit = int(SHARE * available)
    fitting = [candidate for candidate in candidates if candidate[2].device <= limit]
    chosen = fitting[0] if fitting else min(candidates, key=lambda c: c[2].device)
    kind, way, need = chosen
    how = {"none": "no checkpointing", "tuned": "checkpointing from the first tuned layer on"}
    text = f"{_SHARDINGS[kind]}, {how.get(way, f'checkpointing of {way} layers')}:"
    room = f"{gigabytes(limit)} GB (90 % of {gigabytes(available)})"
    if fitting:
        why = f"{text} {gigabytes(need.device)} GB fit in {room}"
    else:
        why = f"{text} needs about {need.brief()}, does not fit in {room}; expect to run out of memory"
    if host_available is not None and need.host > host_available:
        why += (
            f"; needs {gigabytes(need.host)} GB of main memory, but"
            f" {gigabytes(host_available)} are free"
        )
    return Choice(kind, way, why, need)


def estimator(shape: ModelShape, load: Load, recipe: Recipe, **facts: Any) -> Callable[..., Any]:
    """Return what `choose_sharding` asks: `estimate` of a recipe with these two levers turned."""

    def estimate_for(sharding: str, checkpointing: str) -> MemoryEstimate:
        turned = replace(recipe, sharding=sharding, checkpointing=checkpointing)
        return estimate(shape, load, turned, **facts)

    return estimate_for


def available_bytes(processes: int = 1, limit_mb: float | None = None) -> tuple[int, int | None]:
    """Return the free bytes of this rank's device, and of main memory beside it (None on a CPU).

    Main memory is shared by the `processes` of this machine, and is no more than `limit_mb` (what
    the job asked for). Where there are several, each has a device of its own, whose whole memory
    counts: to ask what is free of it would take some, in every process that asks.
    """
    import psutil  # comes with accelerate
    import torch

    host = psutil.virtual_memory().available
    if limit_mb is not None:
        host = min(host, int(limit_mb * 1e6))
    host //= processes
    if not torch.cuda.is_available():
        return host, None
    if processes > 1:
        return torch.cuda.get_device_properties(0).total_memory, host
    return torch.cuda.mem_get_info()[0], host
