"""The sizes of a model that its memory follows from, read from its config alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.decoder.layers import check_family, num_deepstack, text_config
from interlace.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, in parameters (`layers`, `head`, `vision`, `rest`) and in elements.

    `layers`: of each decoder layer. `head`: an untied output head's. `vision`: all that is neither
    decoder nor head (tower, merger). `rest`: embeddings and the final norm. `layer_norms`: a layer's
    norms over D. `head_norms`: queries and keys are normalised too.
    """

    layers: tuple[int, ...]
    head: int
    vision: int
    rest: int
    hidden: int
    query: int
    key: int
    num_heads: int
    mlp: int
    vocab: int
    layer_norms: int
    head_norms: bool
    num_deepstack: int
    vision_hidden: int
    vision_mlp: int
    patches_per_token: int

    @property
    def total(self) -> int:
        """Return the number of parameters."""
        return sum(self.layers) + self.head + self.vision + self.rest


def model_shape(source: "PreTrainedModel | PreTrainedConfig | str | Path") -> ModelShape:
    """Return the sizes of a model, of a config or of a checkpoint folder.

    A config's model is built without memory for its weights. Raises InputError for a family whose
    decoder is not known (`check_family`) or a folder without a readable config.
    """
    import torch
    from transformers import PreTrainedConfig

    from interlace.decoder.load import auto_class

    if isinstance(source, str | Path):
        source = read_config(source)
    if isinstance(source, PreTrainedConfig):
        check_family(source)
        with torch.device("meta"):
            source = auto_class(source).from_config(source)
    config, decoder = source.config, source.get_decoder()
    text = text_config(config)
    head = source.get_output_embeddings()
    untied = head is not None and head.weight is not source.get_input_embeddings().weight
    layers = tuple(_count(layer) for layer in decoder.layers)
    num_head = _count(head) if untied else 0
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    norms = [
        module.weight.numel()
        for name, module in decoder.layers[0].named_modules()
        if name.endswith("norm") and getattr(module, "weight", None) is not None
    ]
    vision = getattr(config, "vision_config", None)
    mlp = text.intermediate_size
    if getattr(text, "num_experts_per_tok", None):
        mlp = text.num_experts_per_tok * text.moe_intermediate_size
    return ModelShape(
        layers=layers,
        head=num_head,
        vision=_count(source) - _count(decoder) - num_head,
        rest=_count(decoder) - sum(layers),
        hidden=text.hidden_size,
        query=text.num_attention_heads * head_dim,
        key=(text.num_key_value_heads or text.num_attention_heads) * head_dim,
        num_heads=text.num_attention_heads,
        mlp=mlp,
        vocab=text.vocab_size,
        layer_norms=sum(size == text.hidden_size for size in norms),
        head_norms=head_dim in norms and head_dim != text.hidden_size,
        num_deepstack=num_deepstack(config),
        vision_hidden=_first(vision, "embed_dim", "hidden_size"),
        vision_mlp=_first(vision, "intermediate_size") or 4 * _first(vision, "embed_dim"),
        patches_per_token=(_first(vision, "spatial_merge_size") or 1) ** 2,
    )


def read_config(path: str | Path) -> "PreTrainedConfig":
    """Return the config of a checkpoint folder; InputError where it is missing or not readable."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}/config.json: {reason}") from None


def _count(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _first(config: Any, *names: str) -> int:
    values = (getattr(config, name, None) for name in names)
    return next((int(value) for value in values if value is not None), 0)
