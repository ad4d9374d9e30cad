"""What the two base models are: tokenizer, processor and configuration, all built offline."""

import json
import random
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from interlace.demo.drawing import CELL
from interlace.demo.topics import TOPICS, training_scene

VOCABULARY = 640
PATCH = CELL // 2
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    *(
        f"<|{thing}_{side}|>"
        for thing in ("object_ref", "box", "quad")
        for side in ("start", "end")
    ),
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a base model. Both have 36 decoder layers and DeepStack after layers 0, 1, 2."""

    hidden: int
    intermediate: int
    tied_head: bool
    vision_hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vision_depth: int = 3
    rope_theta: float = 100.0


ARCHITECTURES = {
    "standin_8b": Architecture(hidden=64, intermediate=128, tied_head=False),
    "standin_4b": Architecture(hidden=48, intermediate=96, tied_head=True, vision_hidden=48),
}
NUM_LAYERS = 36


def build_tokenizer(scenes: int = 3000, seed: int = 123) -> Qwen2Tokenizer:
    """Byte-level BPE of `VOCABULARY` tokens (specials last), trained on the demo's own words."""
    rng = random.Random(seed)
    names = sorted(name for name, topic in TOPICS.items() if topic.share)
    corpus = ["user\nassistant\nsystem\n"] * 50
    for i in range(scenes):
        for turn in training_scene(names[i % len(names)], rng).turns:
            corpus.append(f"{turn.prompt}\n{turn.answer}")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=8192,
    )
    others = [token for token in SPECIALS if token not in (END_OF_TEXT, TURN_END)]
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """Images and videos of any size; one visual token per 32 x 32 px."""
    pixels = {
        "size": {"shortest_edge": CELL**2, "longest_edge": 1024 * CELL**2},
        "patch_size": PATCH,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer, name: str, num_layers: int) -> Qwen3VLConfig:
    """Configuration of base model `name` with `num_layers` decoder layers."""
    size = ARCHITECTURES[name]
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": num_layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.head_dim,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": size.tied_head,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": size.rope_theta,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "eos_token_id": token(TURN_END),
            "pad_token_id": token(END_OF_TEXT),
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=size.tied_head,
    )


def generation_config(tokenizer: Qwen2Tokenizer) -> GenerationConfig:
    """Shaped like the hub's (sampling on), so that whoever wants greedy has to say so."""
    token = tokenizer.convert_tokens_to_ids
    return GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.0,
        eos_token_id=[token(TURN_END), token(END_OF_TEXT)],
        pad_token_id=token(END_OF_TEXT),
    )
