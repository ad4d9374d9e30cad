"""The decoding loop: a batch of rows at a time, which leave it as soon as they are finished.

transformers' generate() runs a batch until its last row ends. Here a row leaves with its last token,
and a batch that has become small, or too wide for its room, is parked: its rows wait, and go on
later beside others as long as they are. A parked row goes on from its prompt and its tokens so far,
so nothing is generated twice. Greedy tokens are those of model.generate on the row alone.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from interlace.errors import InputError
from interlace.evaluation.batches import Inputs, Room, Row, batches, collate, prepared
from interlace.evaluation.state import BatchState
from interlace.memory import is_out_of_memory

# A batch is parked when no more than this share of its rows is left, others wait, and it has run
# for some steps: to start again costs a prefill of every row.
PARKED_SHARE, PARKED_STEPS = 1 / 4, 32

# What a generation config may say without a logits processor of its own: all of it is given to us
# as arguments, or has no part in which token comes next.
_KNOWN = frozenset(
    {
        *("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "use_cache"),
        *("eos_token_id", "pad_token_id", "bos_token_id", "transformers_version"),
        *("max_length", "max_new_tokens", "_from_model_config", "cache_implementation"),
    }
)


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and when an answer ends.

    `arguments` are those that generate() gets: max_new_tokens, do_sample, temperature, top_p,
    top_k. Greedy is the largest logit in float32, as in generate(). A sampled token is drawn from
    the warped distribution by inverting its cumulative sum at a number of the row's own generator:
    it depends neither on the rows beside it nor on the device's generator.
    """

    arguments: dict[str, Any]
    eos: frozenset[int]
    pad: int

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer, the one that ends it included."""
        return self.arguments["max_new_tokens"]

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn instead of taken greedily."""
        return bool(self.arguments.get("do_sample"))

    @torch.inference_mode()
    def choose(self, logits_BV: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        """Return the next token of each row, shape (B,)."""
        scores_BV = logits_BV.float()
        if not self.samples:
            return scores_BV.argmax(dim=-1)
        probs_BV = self._warpers()(None, scores_BV).softmax(dim=-1)
        sums_BV = probs_BV.double().cumsum(dim=-1)
        draws_B1 = sums_BV.new_tensor([[row.draw()] for row in rows])
        # The first sum above the draw: never a token of probability 0.
        return torch.searchsorted(sums_BV, draws_B1 * sums_BV[:, -1:], right=True).squeeze(1)

    def _warpers(self) -> LogitsProcessorList:
        """Return transformers' warpers in the order in which its generate() runs them."""
        get, warpers = self.arguments.get, LogitsProcessorList()
        if get("temperature") not in (None, 1.0):
            warpers.append(TemperatureLogitsWarper(float(get("temperature"))))
        if get("top_k"):
            warpers.append(TopKLogitsWarper(get("top_k")))
        if get("top_p") is not None and get("top_p") < 1.0:
            warpers.append(TopPLogitsWarper(get("top_p")))
        return warpers

    def take(self, rows: list[Row], tokens: list[int]) -> list[int]:
        """Append a token to each row, mark the rows that it finishes; return who goes on."""
        going = []
        for position, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.tokens.append(token)
            row.finished = token in self.eos
            if not row.finished and len(row.tokens) < self.max_new_tokens:
                going.append(position)
        return going


def decoding_of(model: Any, arguments: dict[str, Any], pad: int) -> Decoding:
    """Return the decoding of a model with generate()'s `arguments`; ends are the checkpoint's."""
    eos = model.generation_config.eos_token_id
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return Decoding(arguments, frozenset(eos), pad)


def loop_refusal(model: Any) -> str | None:
    """Return why this model cannot run in the loop, and generate() has to do; None if it can."""
    if not hasattr(model, "_prepare_position_ids_for_generation"):
        return "this transformers does not tell a model's positions"
    if model.config.is_encoder_decoder:
        return "it is an encoder with a decoder"
    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    if kinds - {DynamicLayer.__name__}:
        return f"its cache has layers of {', '.join(sorted(kinds))}"
    unknown = sorted(set(model.generation_config.to_diff_dict()) - _KNOWN)
    return f"its generation config sets {', '.join(unknown)}" if unknown else None


def generate(
    model: Any,
    rows: Iterable[Row],
    decoding: Decoding,
    room: Room,
    benchmark: str,
    ahead: int = 0,
) -> Iterator[Row]:
    """Yield every row when it is finished, or cut at max_new_tokens, with its tokens.

    Rows are best given longest first. Up to `ahead` tokens of them are prepared by a thread while
    the device generates (`prepared`). Running out of memory parks the batch and halves `room`; of a
    row that was alone in its batch it is an InputError that names `benchmark` and row.
    """
    refusal = loop_refusal(model)
    if refusal:
        print(f"answers are generated by generate(), batches as a whole: {refusal}", flush=True)
        if decoding.samples:
            room = replace(room, rows=1)  # its draws depend on the batch
    waiting = list(rows)
    while waiting:
        parked: list[Row] = []
        to_come = len(waiting)
        for batch in batches(prepared(waiting, ahead), room):
            to_come -= len(batch)
            pending = [row for row, _ in batch]
            if refusal:
                running = _generate_whole(model, batch, decoding)
            else:
                running = _generate(model, batch, decoding, room, bool(to_come or parked))
            is_short = False
            try:
                for row in running:
                    pending.remove(row)
                    yield row
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise InputError(_too_long(benchmark, pending[0])) from error
                is_short = True
            parked += pending
            if is_short:  # not in the handler: there the failed step still holds its tensors
                width = max(row.length + len(row.tokens) for row in pending)
                room.tokens = min(room.tokens, len(pending) * width) // 2
                torch.cuda.empty_cache()
                print(
                    f"out of memory with {len(pending)} rows of up to {width} tokens; "
                    f"batches of {room.tokens} tokens from here",
                    flush=True,
                )
        waiting = sorted(parked, key=lambda row: row.length + len(row.tokens), reverse=True)


def _too_long(benchmark: str, row: Row) -> str:
    return (
        f"{benchmark}: index {row.index}: out of memory with this row alone, {row.length} tokens of "
        f"prompt and {len(row.tokens)} of answer; set or lower evaluation.max_pixels, or "
        f"evaluation.pixels.{benchmark}.max_pixels, for all variants"
    )


def _generate(
    model: Any, batch: list[tuple[Row, Inputs]], decoding: Decoding, room: Room, others_wait: bool
) -> Iterator[Row]:
    """Yield a batch's rows as they end; return early to park the rest of them."""
    rows = [row for row, _ in batch]
    state = BatchState(model, batch, decoding.pad)
    for step in itertools.count(1):
        tokens_B = decoding.choose(state.logits_BV, rows)
        going = decoding.take(rows, tokens_B.tolist())
        stays = set(going)
        yield from (row for position, row in enumerate(rows) if position not in stays)
        if not room.fits(len(going), state.width + 1):
            going = going[: len(going) // 2]
        left = decoding.max_new_tokens - min((len(rows[at].tokens) for at in going), default=0)
        is_small = len(going) <= PARKED_SHARE * len(batch)
        if not going or (others_wait and is_small and min(step, left) >= PARKED_STEPS):
            return
        if len(going) < len(rows):
            rows = [rows[at] for at in going]
            kept_B = torch.tensor(going, device=tokens_B.device)
            tokens_B = tokens_B[kept_B]
            state.keep(kept_B)
        state.step(tokens_B)


def _generate_whole(
    model: Any, batch: list[tuple[Row, Inputs]], decoding: Decoding
) -> Iterator[Row]:
    """Yield a batch's rows from transformers' own generate(), all at its end."""
    inputs = collate([inputs for _, inputs in batch], decoding.pad)
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        if decoding.samples:
            torch.manual_seed(batch[0][0].seed)
        output = model.generate(**inputs, **decoding.arguments)
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    for (row, _), tokens in zip(batch, new, strict=True):
        for token in tokens:
            if not decoding.take([row], [token]):
                break
        yield row
