"""How a checkpoint is tuned: two recipes, `paper` and `fast`, made of levers that turn alone.

Both do the same mathematics on the same samples in the same order; they differ in what is computed
besides, and so in time and memory. The levers and their evidence are measured by bench/finetune.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from interlace.errors import InputError


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


def resolve(settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the config's section `finetune`, with the levers that it turns.

    Raises InputError for levers that exclude each other.
    """
    recipe = RECIPES[settings.get("recipe", "fast")]
    turned = {k: v for k, v in (settings.get("levers") or {}).items() if v is not None}
    recipe = replace(recipe, **turned)
    processes = settings.get("processes", 1) * settings.get("nodes", 1)
    if processes > 1 and recipe.sharding == "none":
        raise InputError(
            f"finetune.levers.sharding: none is for one process, but there are {processes}; "
            "use auto, zero3 or zero3_offload"
        )
    if recipe.compile and recipe.sharding not in ("none", "auto"):
        raise InputError(
            "finetune.levers.compile: layers that ZeRO-3 gathers are not compiled; set "
            "finetune.levers.sharding to none or auto"
        )
    return recipe
