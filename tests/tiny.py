"""Tiny stand-ins for tests: a random but real Qwen3-VL checkpoint and a FineVision-shaped folder."""

import functools
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad") for end in ("start", "end")),
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Renders what Qwen3-VL's own template renders for system, user and assistant turns.
CHAT_TEMPLATE = """\
{%- macro body(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part.text -}}
{%- endif -%}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + body(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# (subset, its kind): names as FineVision's, one of them needing quotes in a shell.
SUBSETS = {
    "tiny_vqa": "image",
    "text_tiny": "text",
    "tiny_pairs(a+b)": "two_images",
    "tiny_turns": "turns",
}


def make_tiny_tokenizer(vocab_size: int = 400):
    """Return a byte-level BPE tokenizer of at most `vocab_size` entries with Qwen's specials."""
    from transformers import Qwen2Tokenizer

    trained = _trained_bpe(vocab_size)
    tokenizer = Qwen2Tokenizer(
        vocab=dict(trained["vocab"]),
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    extra = [token for token in SPECIALS if token not in ("<|endoftext|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    return tokenizer


@functools.cache
def _trained_bpe(vocab_size: int) -> dict:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(0)
    corpus = ["user\nassistant\nsystem\n"] * 20
    corpus += [f"{question}\n{answer}" for question, answer in (_turn(rng) for _ in range(200))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return json.loads(bpe.to_str())["model"]


def make_tiny_processor(patch: int = 16):
    """Return a Qwen3VLProcessor: `patch` px patches, merged 2x2, images of 1 to 64 tokens."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    pixels = {
        "size": {"shortest_edge": (2 * patch) ** 2, "longest_edge": 64 * (2 * patch) ** 2},
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=make_tiny_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def make_tiny_checkpoint(
    out: Path, *, layers: int = 6, hidden: int = 32, tied: bool = True, seed: int = 0
) -> Path:
    """Write a random Qwen3VLForConditionalGeneration with its processor to `out`; return `out`.

    Patch 16, merge 2, three vision blocks that all feed DeepStack, four heads of eight. Decoder
    matrices have standard deviation 1/sqrt(fan in), so that layers really change what they get.
    """
    made = _tiny_checkpoint(layers, hidden, tied, seed).name
    return Path(shutil.copytree(made, out, copy_function=shutil.copyfile, dirs_exist_ok=True))


@functools.cache
def _tiny_checkpoint(
    layers: int, hidden: int, tied: bool, seed: int
) -> tempfile.TemporaryDirectory:
    """Make a checkpoint once in this process; the folder goes with it."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    processor = make_tiny_processor()
    token_id = processor.tokenizer.convert_tokens_to_ids
    eos, pad = token_id("<|im_end|>"), token_id("<|endoftext|>")
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(processor.tokenizer) // 16) * 16,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
            "eos_token_id": eos,
            "pad_token_id": pad,
        },
        vision_config={
            "depth": 3,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        for layer in model.model.language_model.layers:
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
        if not tied:
            torch.nn.init.normal_(model.lm_head.weight, std=hidden**-0.5)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[eos, pad], pad_token_id=pad
    )
    folder = tempfile.TemporaryDirectory()
    model.save_pretrained(folder.name)
    processor.save_pretrained(folder.name)
    return folder


def make_tiny_finevision(
    root: Path, subsets: dict[str, str] = SUBSETS, rows: int = 6, seed: int = 0
) -> Path:
    """Write `rows` rows for each of `subsets` in FineVision's columns below `root`; return `root`.

    A subset's kind is `image` (one image, one turn), `text` (no image: null), `two_images` or
    `turns` (one image, three turns). Each subset is two Parquet shards of two-row groups.
    """
    root = Path(root)
    rng = np.random.default_rng(seed)
    for name, kind in subsets.items():
        folder = root / name
        folder.mkdir(parents=True)
        table = [_row(rng, name, kind) for _ in range(rows)]
        half = (rows + 1) // 2
        shards = [shard for shard in (table[:half], table[half:]) if shard]
        for index, shard in enumerate(shards):
            file = folder / f"train-{index:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(pa.Table.from_pylist(shard, schema=SCHEMA), file, row_group_size=2)
    return root


def make_tiny_samples(
    root: Path, subsets: dict[str, str] = SUBSETS, rows: int = 6, seed: int = 0
) -> Path:
    """Write what the samples stage would draw from such a folder: all rows, with their `id`s.

    There is a manifest of the columns id, subset, status and calibration (the first of each
    subset). Return `root`.
    """
    make_tiny_finevision(root, subsets, rows, seed)
    manifest = []
    for file in sorted(Path(root).glob("*/*.parquet")):
        table = pq.read_table(file)
        ids = [f"{file.parent.name}/{file.stem}/{row}" for row in range(len(table))]
        pq.write_table(table.append_column("id", pa.array(ids)), file)
        first = "-00000-of-" in file.name
        manifest += [
            {
                "id": name,
                "subset": file.parent.name,
                "status": "kept",
                "calibration": first and not n,
            }
            for n, name in enumerate(ids)
        ]
    pq.write_table(pa.Table.from_pylist(manifest), Path(root) / "manifest.parquet")
    return Path(root)


_RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        ("source", pa.string()),
        *((f"{name}_ratings", pa.list_(pa.int64())) for name in _RATINGS),
        *((f"{name}_min", pa.int64()) for name in _RATINGS),
    ]
)
_COLOURS = ["red", "green", "blue", "grey"]


def tiny_image(rng: np.random.Generator) -> Image.Image:
    """Return a random picture of 32 to 96 px a side."""
    height, width = 32 * rng.integers(1, 4, 2)
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def _turn(rng: np.random.Generator) -> tuple[str, str]:
    a, b = (int(n) for n in rng.integers(0, 50, 2))
    colour = str(rng.choice(_COLOURS))
    return (f"What is {a} plus {b}? Answer with the colour {colour}.", f"{a + b} {colour}")


def _row(rng: np.random.Generator, source: str, kind: str) -> dict:
    num_images = {"text": 0, "two_images": 2}.get(kind, 1)
    num_turns = 3 if kind == "turns" else 1
    images = []
    for _ in range(num_images):
        buffer = io.BytesIO()
        tiny_image(rng).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    turns = [_turn(rng) for _ in range(num_turns)]
    ratings = None if kind == "text" else [int(n) for n in rng.integers(1, 6, num_turns)]
    return {
        "images": images or None,
        "texts": [{"user": user, "assistant": assistant} for user, assistant in turns],
        "source": source,
        **{f"{name}_ratings": ratings for name in _RATINGS},
        **{f"{name}_min": min(ratings) if ratings else None for name in _RATINGS},
    }
