"""Records to tensors: the chat template's tokens, labels on what the assistant says, padding.

Shapes: B samples, T tokens.
"""

import inspect
import multiprocessing
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from interlace.data.chat import Record, to_messages

IGNORED = -100
# Older transformers cannot: processors only warn of the keyword, and make control tokens of texts.
_CAN_SANITIZE = (
    "sanitize_control_tokens"
    in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
)
_COUNTED = (
    "samples", "tokens", "supervised_tokens", "samples_cut", "tokens_cut",
    "dropped_too_long", "dropped_no_answer", "dropped_unprocessable", "dropped_no_vision",
)  # fmt: skip


class EncodeError(ValueError):
    """A record that cannot become a training sequence; `reason` is the name it is counted under.

    `detail` is one line for people: what exactly is in the way, in the processor's words if it is
    the processor that refuses.
    """

    def __init__(self, record: Record, reason: str, detail: str) -> None:
        super().__init__(f"sample {record.id}: {detail}")
        self.reason = reason
        self.detail = detail


def tokenizer_of(processor: Any) -> Any:
    """Return a processor's tokenizer; what a text-only model has is the bare tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def pad_token_id(processor: Any) -> int:
    """Return the id to pad with: the padding token's, else the end token's, else 0; never read."""
    tokenizer = tokenizer_of(processor)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None), 0)


def encode(record: Record, processor: Any, max_length: int | None = None) -> dict[str, Any]:
    """Return the model inputs of one record, with labels, as tensors whose first axis is 1.

    The keys are those of the processor (`input_ids`, `attention_mask`, for Qwen3-VL also
    `mm_token_type_ids`, and with images `pixel_values`, `image_grid_thw`), all of shape (1, T) but
    for the pixels, plus `labels` (1, T): each assistant turn's text and its end-of-turn token,
    `IGNORED` elsewhere. A text such as "<|im_start|>assistant" that a user or an assistant writes
    is encoded as plain text, never as the control token, and so opens no span. Where a processor
    cannot do that (Idefics3's with an image; a tokenizer that adds its own first token; all of older
    transformers), a space behind the first character of each control token in the text breaks it.

    `processor` may be a bare tokenizer, as text-only models have: its template gets the turns as
    strings, and a record with images is refused.

    A sequence longer than `max_length` is cut at its end, but never within the images and never
    before the first supervised token. Raises `EncodeError` where that cannot be had, where no
    token is supervised or where the processor refuses an image.
    """
    inputs, messages = _apply_template(record, processor)
    ids = inputs["input_ids"]
    labels = torch.full_like(ids, IGNORED)
    for start, end in _assistant_spans(messages, ids[0].tolist(), processor):
        labels[0, start:end] = ids[0, start:end]
    if not (labels != IGNORED).any():
        raise EncodeError(record, "dropped_no_answer", "no assistant token to learn from")
    encoded = {**inputs, "labels": labels}
    return encoded if max_length is None else _cut(record, encoded, max_length)


def encode_prompt(record: Record, processor: Any, max_length: int | None = None) -> dict[str, Any]:
    """Return the model inputs of what a model is asked: all images, the first user turn and the
    generation prompt, no answer. Shapes and keys as `encode`, but no `labels`.

    Nothing is cut: raises `EncodeError` for a prompt longer than `max_length`, or where the
    processor refuses an image.
    """
    inputs, _ = _apply_template(record, processor, prompt=True)
    length = inputs["input_ids"].shape[1]
    if max_length is not None and length > max_length:
        detail = f"the prompt has {length} tokens, max_length is {max_length}"
        raise EncodeError(record, "dropped_too_long", detail)
    return dict(inputs)


def _apply_template(
    record: Record, processor: Any, prompt: bool = False
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model inputs and the messages that they are of; see `encode`."""
    messages = to_messages(record)[: 1 if prompt else None]
    if tokenizer_of(processor) is processor:
        if record.images:
            detail = "it has images, but the model has no image processor and reads text only"
            raise EncodeError(record, "dropped_no_vision", detail)
        # Templates of text-only models know no content in parts.
        messages = [{**one, "content": one["content"][0]["text"]} for one in messages]

    def render(messages: list[dict[str, Any]], sanitize: bool) -> Any:
        return processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=prompt,
            **_sanitized(sanitize),
        )

    if _CAN_SANITIZE:
        try:
            return render(messages, True), messages
        except (ValueError, RuntimeError):
            # Refused for what the record is, which the second call raises again, or because this
            # processor cannot sanitize.
            pass
    messages = _break_control_tokens(messages, processor)
    try:
        return render(messages, False), messages
    except (ValueError, RuntimeError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncodeError(record, "dropped_unprocessable", detail) from error


def _sanitized(sanitize: bool) -> dict[str, bool]:
    return {"sanitize_control_tokens": sanitize} if _CAN_SANITIZE else {}


def _break_control_tokens(messages: list[dict[str, Any]], processor: Any) -> list[dict[str, Any]]:
    """Return `messages` with a space behind the first character of every control token in them."""
    added = tokenizer_of(processor).added_tokens_decoder.values()
    control = {token.content for token in added if token.special}
    control |= {getattr(processor, f"{kind}_token", None) or "" for kind in ("image", "video")}
    known = sorted((token for token in control if len(token.strip()) > 1), key=len, reverse=True)
    if not known:
        return messages
    pattern = re.compile("|".join(map(re.escape, known)))

    def broken(content: Any) -> Any:
        if isinstance(content, str):
            return pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", content)
        return [
            {**part, "text": broken(part["text"])} if part["type"] == "text" else part
            for part in content
        ]

    return [{**message, "content": broken(message["content"])} for message in messages]


def _cut(record: Record, encoded: dict[str, Any], max_length: int) -> dict[str, Any]:
    """Return `encoded` without the tokens past `max_length`; see `encode`."""
    first = int((encoded["labels"][0] != IGNORED).nonzero()[0, 0])
    if first >= max_length:
        detail = f"the answer starts at token {first}, past max_length {max_length}"
        raise EncodeError(record, "dropped_too_long", detail)
    return {
        key: value[:, :max_length] if _along_tokens(value, encoded) else value
        for key, value in encoded.items()
    }


def _assistant_spans(
    messages: list[dict[str, Any]], ids: Sequence[int], processor: Any
) -> list[tuple[int, int]]:
    """Return [start, end) in `ids` of every assistant turn, end-of-turn token included.

    The template itself says where a turn starts (rendered up to it, with the generation prompt)
    and ends (rendered through it). Both are rendered without the images: these stand in the first
    user turn only and expand to many tokens, so the spans are counted from the end of `ids`.
    """

    tokenizer = tokenizer_of(processor)

    def tokens(upto: int, prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(
            messages[:upto],
            chat_template=processor.chat_template or tokenizer.chat_template,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=prompt,
            **_sanitized(True),
        )

    whole = tokens(len(messages), False)
    shift = len(ids) - len(whole)
    spans = []
    for position in range(1, len(messages), 2):
        # Where "\n" of the header merges with a newline that opens the answer, the token that
        # holds both is part of the answer.
        start = _common(tokens(position, True), whole)
        last = position + 1 == len(messages)
        end = len(whole) if last else _common(tokens(position + 1, False), whole)
        while end > start and tokenizer.decode(whole[end - 1]).isspace():
            end -= 1
        spans.append((start + shift, end + shift))
    first = spans[0][0]
    assert list(ids[first:]) == whole[first - shift :], "images must precede the first answer"
    return spans


def _common(prefix: Sequence[int], whole: Sequence[int]) -> int:
    """Return how many leading tokens `prefix` and `whole` share."""
    for position, (left, right) in enumerate(zip(prefix, whole, strict=False)):
        if left != right:
            return position
    return min(len(prefix), len(whole))


def _along_tokens(value: torch.Tensor, encoded: dict[str, Any]) -> bool:
    return value.shape == encoded["input_ids"].shape


def pad(
    encoded: Sequence[dict[str, Any]],
    pad_token_id: int,
    padding_side: str = "right",
    fill: Mapping[str, int] | None = None,
) -> dict[str, torch.Tensor]:
    """Return one batch of what `encode` returned: (1, T_b) each becomes (B, max T).

    Padding is `pad_token_id` in `input_ids`, `IGNORED` in `labels`, what `fill` says, and 0
    elsewhere. Pixels and
    grids are joined along their first axis; a batch without images has neither. Where their other
    axes differ (tiles per sample or per image, heights, widths), zeros fill their ends up to the
    largest, as the image processors of transformers do for a batch (`pixel_values` and
    `pixel_attention_mask` of Idefics3 and SmolVLM, patches of the LLaVA family): the models leave
    out tiles that are all zero or past what the image's size asks for.
    """
    assert padding_side in ("left", "right"), padding_side
    length = max(sample["input_ids"].shape[1] for sample in encoded)
    fill = {"input_ids": pad_token_id, "labels": IGNORED, **(fill or {})}
    columns: dict[str, list[torch.Tensor]] = {}
    for sample in encoded:
        missing = length - sample["input_ids"].shape[1]
        margin = (missing, 0) if padding_side == "left" else (0, missing)
        for key, value in sample.items():
            if _along_tokens(value, sample):
                value = torch.nn.functional.pad(value, margin, value=fill.get(key, 0))
            columns.setdefault(key, []).append(value)
    return {key: _join(values) for key, values in columns.items()}


def _join(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return all tensors one after the other, axes after the first filled up with zeros."""
    sizes = [max(lengths) for lengths in zip(*(v.shape[1:] for v in values), strict=True)]
    filled = []
    for value in values:
        missing = [most - length for most, length in zip(sizes, value.shape[1:], strict=True)]
        if any(missing):
            margins = [margin for gap in reversed(missing) for margin in (0, gap)]
            value = torch.nn.functional.pad(value, margins)
        filled.append(value)
    return torch.cat(filled)


class Collator:
    """Encode a list of records and pad them to one batch; counts what is cut and left out.

    `padding_side` is where padding goes: "right" for training and scoring, "left" to generate.
    `counts` adds up over calls and over the worker processes of a DataLoader.
    """

    def __init__(
        self, processor: Any, max_length: int | None = None, padding_side: str = "right"
    ) -> None:
        assert padding_side in ("left", "right")
        self.processor = processor
        self.max_length = max_length
        self.padding_side = padding_side
        self._counts = multiprocessing.Array("q", len(_COUNTED))

    @property
    def counts(self) -> dict[str, int]:
        """How many samples, tokens and supervised tokens came out, and what was cut or dropped."""
        with self._counts.get_lock():
            return dict(zip(_COUNTED, self._counts, strict=True))

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Return one batch: (B, T) tensors, the images of all samples one after the other.

        A record that cannot be encoded is left out and counted; if none is left, the `EncodeError`
        of the last one is raised.
        """
        encoded, failure = [], None
        for record in records:
            try:
                encoded.append(self._encode(record))
            except EncodeError as error:
                self._count(error.reason, 1)
                failure = error
        if not encoded:
            raise failure or ValueError("a batch needs at least one record")
        return pad(encoded, pad_token_id(self.processor), self.padding_side)

    def _encode(self, record: Record) -> dict[str, Any]:
        sample = whole = encode(record, self.processor)
        if self.max_length is not None:
            sample = _cut(record, whole, self.max_length)
        cut = whole["input_ids"].shape[1] - sample["input_ids"].shape[1]
        self._count("samples", 1)
        self._count("tokens", sample["input_ids"].shape[1])
        self._count("supervised_tokens", int((sample["labels"] != IGNORED).sum()))
        self._count("samples_cut", int(cut > 0))
        self._count("tokens_cut", cut)
        return sample

    def _count(self, name: str, value: int) -> None:
        with self._counts.get_lock():
            self._counts[_COUNTED.index(name)] += value
