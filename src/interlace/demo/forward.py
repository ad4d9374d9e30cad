"""Forward passes of a real Qwen3-VL in batches of equal pictures, for training on a CPU.

The weights and the mathematics are those of transformers' Qwen3VLForConditionalGeneration; left
out are masks, caches and index bookkeeping, which cost more than the arithmetic at this size. A
test compares the logits with transformers' own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from interlace.demo.base import PATCH
from interlace.demo.scenes import Turn

IGNORED = -100


class Layout(NamedTuple):
    """Which pictures open a sequence: how many, each of `width x height` cells."""

    pictures: int
    width: int
    height: int


@dataclass(frozen=True)
class Batch:
    """`pixels` uint8 [rows * pictures, 32 height, 32 width, 3]; `ids`, `labels` [rows, length]."""

    layout: Layout
    pixels: np.ndarray | None
    ids: Tensor
    labels: Tensor


class Encoder:
    """Turns to token ids; pictures first, then the chat template's turns."""

    def __init__(self, tokenizer: Qwen2Tokenizer):
        self.tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text, remembered."""
        known = self._cache.get(text)
        if known is None:
            if len(self._cache) > 200_000:
                self._cache.clear()
            known = self._cache[text] = self.tokenizer(text).input_ids
        return known

    def opening(self, layout: Layout) -> list[int]:
        """Ids up to the first question."""
        picture = [self.tokenizer.convert_tokens_to_ids("<|image_pad|>")]
        cells = layout.width * layout.height
        start, end = self.ids("<|vision_start|>"), self.ids("<|vision_end|>")
        return self.ids("<|im_start|>user\n") + (start + picture * cells + end) * layout.pictures

    def sequence(
        self, layout: Layout, turns: list[Turn], text_length: int
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of the first turn and of as many more as fit into `text_length`."""
        ids = list(self.opening(layout))
        labels = [IGNORED] * len(ids)
        limit = len(ids) + text_length
        for i, turn in enumerate(turns):
            asked = [] if i == 0 else self.ids("\n<|im_start|>user\n")
            asked = asked + self.ids(turn.prompt) + self.ids("<|im_end|>\n<|im_start|>assistant\n")
            answer = self.ids(turn.answer) + self.ids("<|im_end|>")
            if i and len(ids) + len(asked) + len(answer) > limit:
                break
            ids += asked + answer
            labels += [IGNORED] * len(asked) + answer
        return ids, labels

    def batch(
        self,
        layout: Layout,
        pictures: list[np.ndarray],
        conversations: list[list[Turn]],
        text_length: int,
    ) -> Batch:
        """Rows padded on the right to the longest."""
        rows = [self.sequence(layout, turns, text_length) for turns in conversations]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        for i, (row, label) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, : len(label)] = torch.tensor(label)
        return Batch(layout, np.stack(pictures) if pictures else None, ids, labels)


class Forward:
    """Runs a model's own modules on `Batch`es."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, encoder: Encoder):
        self.model, self.encoder = model, encoder
        self._vision: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._positions: dict[tuple[Layout, int], Tensor] = {}
        self._places: dict[Layout, Tensor] = {}

    def patches(self, pixels: np.ndarray) -> Tensor:
        """What the image processor makes of the pictures: [N, patches, 3 * 2 * 16 * 16]."""
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        count, _, height, width = x.shape
        high, wide = height // (2 * PATCH), width // (2 * PATCH)
        x = x.view(count, 3, high, 2, PATCH, wide, 2, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
        x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
        return x.reshape(count, high * wide * 4, -1)

    def _vision_tables(self, width: int, height: int) -> tuple[Tensor, ...]:
        key = (width, height)
        if key not in self._vision:
            grid = torch.tensor([[1, 2 * height, 2 * width]])
            side = int(self.model.config.vision_config.num_position_embeddings**0.5)
            index, weight = get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=side,
                mode="bilinear",
                align_corners=True,
                spatial_merge_size=2,
            )
            place = get_vision_position_ids(grid, 2)
            cos, sin = self.model.model.visual.rotary_pos_emb(torch.zeros(1), place)
            self._vision[key] = (index, weight, cos[None, :, None], _folded(sin)[None, :, None])
        return self._vision[key]

    def see(self, pixels: np.ndarray) -> tuple[Tensor, list[Tensor]]:
        """Merged features [N, cells, hidden] and the DeepStack ones of the three blocks."""
        tower = self.model.model.visual
        patches = self.patches(pixels)
        count, length, _ = patches.shape
        index, weight, cos, sin = self._vision_tables(
            pixels.shape[2] // (2 * PATCH), pixels.shape[1] // (2 * PATCH)
        )
        project = tower.patch_embed.proj
        h = F.linear(patches, project.weight.view(project.weight.shape[0], -1), project.bias)
        h = h + (tower.pos_embed(index) * weight[:, :, None]).sum(1)
        levels = []
        for i, block in enumerate(tower.blocks):
            attention = block.attn
            qkv = attention.qkv(block.norm1(h)).view(count, length, 3, attention.num_heads, -1)
            q, k, v = qkv.unbind(2)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
            h = h + attention.proj(out.transpose(1, 2).reshape(count, length, -1))
            h = h + block.mlp(block.norm2(h))
            if i in tower.deepstack_visual_indexes:
                merge = tower.deepstack_merger_list[list(tower.deepstack_visual_indexes).index(i)]
                levels.append(merge(h.reshape(count * length, -1)).view(count, length // 4, -1))
        return tower.merger(h.reshape(count * length, -1)).view(count, length // 4, -1), levels

    def _rotary(self, layout: Layout, length: int) -> tuple[Tensor, Tensor]:
        key = (layout, length)
        if key not in self._positions:
            ids = self.encoder.opening(layout)
            ids = torch.tensor([ids + [0] * (length - len(ids))])
            grid = torch.tensor([[1, 2 * layout.height, 2 * layout.width]] * layout.pictures)
            kind = (ids == self.model.config.image_token_id).int()
            place, _ = self.model.model.get_rope_index(
                ids, kind, image_grid_thw=grid if layout.pictures else None
            )
            if len(self._positions) > 4000:
                self._positions.clear()
            with torch.no_grad():
                cos, sin = self.model.model.language_model.rotary_emb(torch.zeros(1), place)
            self._positions[key] = (cos.unsqueeze(2), _folded(sin).unsqueeze(2))
        return self._positions[key]

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states after the last norm, [rows, length, hidden]."""
        decoder = self.model.model.language_model
        h = decoder.embed_tokens(batch.ids)
        levels: list[Tensor] = []
        if batch.layout.pictures:
            if batch.layout not in self._places:
                opening = torch.tensor(self.encoder.opening(batch.layout))
                is_picture = opening == self.model.config.image_token_id
                self._places[batch.layout] = is_picture.nonzero()[:, 0]
            places = self._places[batch.layout]
            seen, levels = self.see(batch.pixels)
            h = h.index_copy(1, places, seen.reshape(len(h), len(places), -1))
        cos, sin = self._rotary(batch.layout, batch.ids.shape[1])
        for i, layer in enumerate(decoder.layers):
            h = _decoder_layer(layer, h, cos, sin)
            if i < len(levels):
                h = h.index_add(1, places, levels[i].reshape(len(h), len(places), -1))
        return F.rms_norm(h, h.shape[-1:], decoder.norm.weight, decoder.norm.variance_epsilon)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum over answers of their mean token loss, and the number of answers.

        Every answer weighs the same whatever its length, else captions drown the one-word answers.
        """
        hidden, labels = self.hidden(batch)[:, :-1], batch.labels[:, 1:]
        told = labels != IGNORED
        starts = told & ~F.pad(told, (1, 0))[:, :-1]
        answer = torch.cumsum(starts.flatten(), 0)[told.flatten()] - 1
        lengths = torch.bincount(answer)
        logits = F.linear(hidden[told], self.model.lm_head.weight)
        losses = F.cross_entropy(logits, labels[told], reduction="none")
        return (losses / lengths[answer]).sum(), len(lengths)

    @torch.no_grad()
    def exact(self, batch: Batch) -> list[bool]:
        """Row by row: would greedy decoding give the labelled answer, to the letter?"""
        hidden, labels = self.hidden(batch)[:, :-1], batch.labels[:, 1:]
        told = labels != IGNORED
        right = torch.ones_like(told)
        best = F.linear(hidden[told], self.model.lm_head.weight).argmax(-1)
        right[told] = best == labels[told]
        return right.all(1).tolist()


def _folded(sin: Tensor) -> Tensor:
    """Sine with the sign of rotate_half folded in: [-first half, second half]."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _decoder_layer(layer: nn.Module, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Qwen3VLTextDecoderLayer without mask and cache. h: [rows, length, hidden]."""
    attention, mlp = layer.self_attn, layer.mlp
    rows, length, hidden = h.shape
    size, eps = attention.head_dim, layer.input_layernorm.variance_epsilon
    x = F.rms_norm(h, (hidden,), layer.input_layernorm.weight, eps)
    q = F.linear(x, attention.q_proj.weight).view(rows, length, -1, size)
    k = F.linear(x, attention.k_proj.weight).view(rows, length, -1, size)
    v = F.linear(x, attention.v_proj.weight).view(rows, length, -1, size)
    q = _rotate(F.rms_norm(q, (size,), attention.q_norm.weight, eps), cos, sin)
    k = _rotate(F.rms_norm(k, (size,), attention.k_norm.weight, eps), cos, sin)
    out = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=True, enable_gqa=True
    )
    h = h + F.linear(out.transpose(1, 2).reshape(rows, length, -1), attention.o_proj.weight)
    x = F.rms_norm(h, (hidden,), layer.post_attention_layernorm.weight, eps)
    gate = F.silu(F.linear(x, mlp.gate_proj.weight)) * F.linear(x, mlp.up_proj.weight)
    return h + F.linear(gate, mlp.down_proj.weight)
