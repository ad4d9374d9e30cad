"""Tiny random models of every family that the decoder room knows, with real batches for them.

Each is the family's own architecture with weights from a seed, in float32. Where transformers
builds the family's processor without files from a hub, batches with a picture come from it.
"""

import functools
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from tests.tiny import CHAT_TEMPLATE, make_tiny_processor, make_tiny_tokenizer, tiny_image

LAYERS = 6
HIDDEN = 32
# Names under which the processors ask their tokenizer for a token.
NAMED_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "context_image_token": "<|image_pad|>",
    "start_image_token": "<|vision_start|>",
    "end_image_token": "<|vision_end|>",
    "boi_token": "<|vision_start|>",
    "eoi_token": "<|vision_end|>",
}
PLAIN_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}  # 16 patches a picture
QWEN_VISION = {
    "depth": 3,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_heads": 4,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}
DEEPSTACK = {
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1, 2],
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

VISION_FAMILIES = (
    "qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl", "llava_onevision", "llava", "internvl",
    "smolvlm", "idefics3", "gemma3",
)  # fmt: skip
TEXT_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")
FAMILIES = VISION_FAMILIES + TEXT_FAMILIES
# smolvlm's processor needs a package (num2words) that this project has no use for.
WITH_PROCESSOR = tuple(family for family in VISION_FAMILIES if family != "smolvlm")


@functools.cache
def tiny_tokenizer() -> Any:
    """Return one tokenizer that knows every family's special tokens."""
    tokenizer = make_tiny_tokenizer()
    known = [*tokenizer.extra_special_tokens, *PLAIN_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": known})
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, extra_special_tokens=NAMED_TOKENS)


def token_id(token: str) -> int:
    """Return a special token's id."""
    return tiny_tokenizer().convert_tokens_to_ids(token)


def tiny_config(family: str, layers: int = LAYERS, **text: Any) -> Any:
    """Return the config of a tiny model; `text` changes entries of its decoder's."""
    return _CONFIGS[family]({"num_hidden_layers": layers, **text})


def tiny_model(family: str, layers: int = LAYERS, seed: int = 0, **text: Any) -> PreTrainedModel:
    """Return a random model of `family` in evaluation mode; `text` changes its decoder's config."""
    config = tiny_config(family, layers, **text)
    auto = (
        transformers.AutoModelForImageTextToText
        if family in VISION_FAMILIES
        else transformers.AutoModelForCausalLM
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        # Defaults are so small that a layer hardly changes what it gets.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|endoftext|>")
    )
    return model


def tiny_batch(family: str, with_image: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the model inputs of one prompt, without padding."""
    picture = tiny_image(np.random.default_rng(seed)) if with_image else None
    content = [{"type": "text", "text": f"What is left of square {seed}? Answer in one word."}]
    if family in WITH_PROCESSOR:
        if picture is not None:
            content = [{"type": "image", "image": picture}, *content]
        return dict(
            tiny_processor(family).apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )
    words = tiny_tokenizer()(content[0]["text"])["input_ids"]
    if picture is None or family in TEXT_FAMILIES:
        ids = torch.tensor([words])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # One picture of 16 patches, four of which the connector makes one token.
    ids = torch.tensor([[token_id("<|image_pad|>")] * 4 + words])
    pixels = np.asarray(picture.resize((32, 32)), np.float32) / 127.5 - 1
    pixel_values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None, None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixel_values,
        "pixel_attention_mask": torch.ones(1, 1, 32, 32, dtype=torch.bool),
    }


@functools.cache
def tiny_processor(family: str) -> Any:
    """Return the family's processor around the one tokenizer."""
    tokenizer = tiny_tokenizer()
    square = {"height": 32, "width": 32}
    if family.startswith("qwen"):
        like = make_tiny_processor()
        name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}.get(family)
        videos = like.video_processor
        if name is not None:
            videos = transformers.Qwen2VLVideoProcessor(
                size=dict(like.image_processor.size), patch_size=16, merge_size=2
            )
        return getattr(transformers, name or "Qwen3VLProcessor")(
            image_processor=like.image_processor,
            tokenizer=tokenizer,
            video_processor=videos,
            chat_template=CHAT_TEMPLATE,
        )
    if family == "llava":
        return transformers.LlavaProcessor(
            transformers.CLIPImageProcessor(size=square, crop_size=square),
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=_template("<|image_pad|>"),
        )
    if family == "llava_onevision":
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=PINPOINTS),
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=_template("<|image_pad|>"),
        )
    if family == "internvl":
        return transformers.InternVLProcessor(
            transformers.GotOcr2ImageProcessor(size=square, max_patches=2),
            tokenizer,
            transformers.InternVLVideoProcessor(size=square),
            image_seq_length=4,
            chat_template=_template("<|image_pad|>"),
        )
    if family == "idefics3":
        return transformers.Idefics3Processor(
            transformers.Idefics3ImageProcessor(
                size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
            ),
            tokenizer,
            image_seq_len=4,
            chat_template=_template("<image>"),
        )
    assert family == "gemma3", family
    return transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=square),
        tokenizer,
        image_seq_length=4,
        chat_template=_template("<|vision_start|>"),
    )


PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]


def _template(placeholder: str) -> str:
    return CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", placeholder)


def _text(changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": -(-len(tiny_tokenizer()) // 16) * 16,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": token_id("<|endoftext|>"),
        "bos_token_id": token_id("<|im_start|>"),
        "eos_token_id": token_id("<|im_end|>"),
        **more,
        **changes,
    }


def _qwen(config: str, vision: dict[str, Any], **more: Any):
    def make(changes: dict[str, Any]) -> Any:
        return getattr(transformers, config)(
            text_config=_text(changes, **more),
            vision_config={**QWEN_VISION, **vision},
            image_token_id=token_id("<|image_pad|>"),
            video_token_id=token_id("<|video_pad|>"),
            vision_start_token_id=token_id("<|vision_start|>"),
            vision_end_token_id=token_id("<|vision_end|>"),
            tie_word_embeddings=False,
        )

    return make


def _composite(config: str, text_type: str, vision: dict[str, Any], **whole: Any):
    def make(changes: dict[str, Any]) -> Any:
        more = {name: value() if callable(value) else value for name, value in whole.items()}
        return getattr(transformers, config)(
            text_config=_text(changes, model_type=text_type) | more.pop("text", {}),
            vision_config=vision,
            tie_word_embeddings=False,
            **more,
        )

    return make


def _plain(config: str, **more: Any):
    return lambda changes: getattr(transformers, config)(**_text(changes, **more))


GEMMA = {"sliding_window": 6, "query_pre_attn_scalar": 8, "sliding_window_pattern": 3}
_MOE = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
}
_INTERLEAVED = {"rope_parameters": {**MROPE, "mrope_interleaved": True}}
_CONFIGS = {
    "qwen3_vl": _qwen("Qwen3VLConfig", DEEPSTACK, **_INTERLEAVED),
    "qwen3_vl_moe": _qwen("Qwen3VLMoeConfig", DEEPSTACK, **_INTERLEAVED, **_MOE),
    "qwen2_5_vl": _qwen(
        "Qwen2_5_VLConfig",
        {"out_hidden_size": HIDDEN, "fullatt_block_indexes": [1], "window_size": 64},
        rope_parameters=MROPE,
        **SLIDING,
    ),
    "qwen2_vl": _qwen(
        "Qwen2VLConfig",
        # its vision tower calls the width embed_dim, and hidden_size that of the decoder
        {"embed_dim": HIDDEN, "mlp_ratio": 2},
        rope_parameters=MROPE,
        **SLIDING,
    ),
    "llava": _composite(
        "LlavaConfig",
        "llama",
        {"model_type": "clip_vision_model", **VISION},
        image_token_index=lambda: token_id("<|image_pad|>"),
        image_seq_length=16,
    ),
    "llava_onevision": _composite(
        "LlavaOnevisionConfig",
        "qwen2",
        {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_token_index=lambda: token_id("<|image_pad|>"),
        video_token_index=lambda: token_id("<|video_pad|>"),
        image_grid_pinpoints=PINPOINTS,
        text=SLIDING,
    ),
    "internvl": _composite(
        "InternVLConfig",
        "qwen3",
        {"model_type": "internvl_vision", **VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=lambda: token_id("<|image_pad|>"),
        image_seq_length=4,
    ),
    "smolvlm": _composite(
        "SmolVLMConfig",
        "llama",
        {"model_type": "smolvlm_vision", **VISION},
        image_token_id=lambda: token_id("<|image_pad|>"),
    ),
    "idefics3": _composite(
        "Idefics3Config",
        "llama",
        {"model_type": "idefics3_vision", **VISION},
        image_token_id=lambda: token_id("<image>"),
    ),
    "gemma3": _composite(
        "Gemma3Config",
        "gemma3_text",
        {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_token_index=lambda: token_id("<|image_pad|>"),
        boi_token_index=lambda: token_id("<|vision_start|>"),
        eoi_token_index=lambda: token_id("<|vision_end|>"),
        mm_tokens_per_image=4,
        text=GEMMA,
    ),
    "llama": _plain("LlamaConfig"),
    "qwen2": _plain("Qwen2Config", **SLIDING),
    "qwen3": _plain("Qwen3Config", **SLIDING),
    "mistral": _plain("MistralConfig", sliding_window=6),
    "gemma3_text": _plain("Gemma3TextConfig", **GEMMA),
}
