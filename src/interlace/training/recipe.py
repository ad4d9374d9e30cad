"""How a checkpoint is tuned: two recipes, `paper` and `fast`, made of levers that turn alone.

Both do the same mathematics on the same samples in the same order; they differ in what is computed
besides, and so in time and memory. The levers and their evidence are measured by bench/finetune.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from interlace.errors import InputError

UNCOMPILED = "layers that ZeRO-3 gathers are not compiled"


@dataclass(frozen=True)
class Recipe:
    """What is computed, lever by lever; `auto` is settled when model and machine are known.

    - `graph`: `all` lets gradients flow down to the embeddings, through every frozen layer, which
      is what gradient checkpointing does in transformers; `tuned` ends at the first tuned layer.
    - `checkpointing`: recompute the activations of `all` layers, of those from the first `tuned`
      one on, or of `none`.
    - `head`: logits of all tokens (`full`), of the supervised ones (`supervised`), of these a few
      at a time (`chunked`), or by Liger's fused kernel (`liger`).
    - `packing`: several samples in one row instead of one padded row each.
    - `vision`: the tower runs in every step (`live`), or its features come from disk (`cached`).
    - `sharding`: DeepSpeed's `zero3` or `zero3_offload`, or plain on one device (`none`).
    - `attention`: of packed rows; see `interlace.training.attention`.
    - `compile`: torch.compile of every decoder layer.
    """

    name: str
    graph: str = "tuned"
    checkpointing: str = "auto"
    head: str = "auto"
    packing: bool = True
    vision: str = "live"
    sharding: str = "auto"
    attention: str = "auto"
    compile: bool = False

    def levers(self) -> dict[str, Any]:
        """Return the levers by name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


RECIPES = {
    # The original's settings: transformers' checkpointing, whole logits, ZeRO-3 on one GPU.
    "paper": Recipe(
        "paper",
        graph="all",
        checkpointing="all",
        head="full",
        packing=False,
        sharding="zero3",
        attention="sdpa",
    ),
    "fast": Recipe("fast"),
}


# Keys of the config's section `finetune` that change how a run is computed, told or bounded, but not
# the weights it ends in. Neither Snakemake nor a run that goes on asks whether they are the same.
_NOT_OF_THE_WEIGHTS = frozenset(
    {
        *("recipe", "levers", "pack_tokens", "workers", "processes", "nodes"),
        *("checkpoint_minutes", "max_failed_share", "deepspeed", "deepspeed_offload"),
    }
)


def of_the_weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the config's section `finetune` decides the weights.

    Of `processes` and `nodes` that is their product `world_size`, which a step's size follows from.
    Without a teacher, nothing of `kd`. The content of a DeepSpeed file is not looked at here. Sorted
    by key: Snakemake compares the text, and who moves a line of the config changes nothing.
    """
    left_out = _NOT_OF_THE_WEIGHTS | ({"kd"} if settings.get("loss", "ce") == "ce" else set())
    decisive = {key: value for key, value in settings.items() if key not in left_out}
    return dict(sorted((decisive | {"world_size": world_size(settings)}).items()))


def world_size(settings: Mapping[str, Any]) -> int:
    """Return how many ranks the config's section `finetune` asks for."""
    return settings.get("processes", 1) * settings.get("nodes", 1)


def resolve(settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the config's section `finetune`, with the levers that it turns.

    Raises InputError for levers that exclude each other.
    """
    recipe = RECIPES[settings.get("recipe", "fast")]
    turned = {k: v for k, v in (settings.get("levers") or {}).items() if v is not None}
    recipe = replace(recipe, **turned)
    processes, loss = world_size(settings), settings.get("loss", "ce")
    if loss != "ce" and processes > 1:
        raise InputError(
            f"finetune.loss: {loss} needs the dense model beside the pruned one on one device, but "
            f"there are {processes} processes; set finetune.processes and finetune.nodes to 1"
        )
    if loss != "ce" and recipe.sharding in ("zero3", "zero3_offload"):
        raise InputError(
            f"finetune.loss: {loss} needs the dense model beside the pruned one on one device, but "
            f"finetune.levers.sharding is {recipe.sharding}; set it to none"
        )
    if processes > 1 and recipe.sharding == "none":
        raise InputError(
            f"finetune.levers.sharding: none is for one process, but there are {processes}; "
            "use auto, zero3 or zero3_offload"
        )
    if recipe.compile and (processes > 1 or recipe.sharding not in ("none", "auto")):
        way_out = (
            "use one process" if processes > 1 else "set finetune.levers.sharding to none or auto"
        )
        raise InputError(f"finetune.levers.compile: {UNCOMPILED}; {way_out}, or turn it off")
    return recipe
