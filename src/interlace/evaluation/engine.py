"""The batched engine: one copy of a model that answers rows, and what it answered on the disk."""

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from interlace.data.seeds import derive_seed
from interlace.decoder.load import default_device, load_model, load_processor
from interlace.evaluation.batches import Room, Row
from interlace.evaluation.benchmarks import Benchmark
from interlace.evaluation.generate import decoding_of, generate
from interlace.evaluation.model import LocalQwen3VL, check_image
from interlace.evaluation.predictions import Prediction, PredictionStore
from interlace.evaluation.settings import generation, pixel_limits
from interlace.io import digest, file_digest

# A prompt as VLMEvalKit's datasets build it: parts of type image (a path) and text.
Message = list[dict[str, str]]


class Prompt(NamedTuple):
    """A row's index, its prompt, and a name of its pictures, the same for the same bytes."""

    index: str
    message: Message
    images: str


# Finished rows are written together, at most so many seconds after the first of them.
FLUSH_S = 2.0
# Where the settings name none.
BATCH_SIZE, BATCH_TOKENS = 64, 65536


class Engine:
    """One copy of a checkpoint on one device, loaded when the first answer is missing.

    `settings` are the config's evaluation section with `dtype`, `attention` and `device`;
    `modes[mode]` of them is how many tokens an answer may have.
    """

    def __init__(self, checkpoint: Path, settings: dict[str, Any], mode: str, seed: int) -> None:
        self.checkpoint, self.settings, self.mode, self.seed = checkpoint, settings, mode, seed

    @functools.cached_property
    def model(self) -> Any:
        """The checkpoint, as transformers loads it."""
        get = self.settings.get
        return load_model(
            self.checkpoint,
            get("dtype", "float32"),
            default_device(self.settings),
            get("attention", "sdpa"),
        )

    @functools.cached_property
    def processor(self) -> Any:
        """The checkpoint's processor."""
        return load_processor(self.checkpoint)

    @functools.cached_property
    def room(self) -> Room:
        """What a batch may hold: less for the next benchmark too, once memory has run out."""
        get = self.settings.get
        return Room(
            int(get("batch_size") or BATCH_SIZE),
            int(get("batch_tokens") or BATCH_TOKENS),
            int(self.settings["modes"][self.mode]),
        )

    def kit_model(self, benchmark: str | None, with_weights: bool = True) -> LocalQwen3VL:
        """Return VLMEvalKit's model for a benchmark; without weights it only makes prompts.

        None: for any, with the limits on image sizes that are no benchmark's own.
        """
        made_with = generation(self.settings, self.mode, benchmark)
        low, high = pixel_limits(self.settings, benchmark)
        return LocalQwen3VL(
            self.model if with_weights else None,
            self.processor if with_weights else None,
            max_new_tokens=made_with["max_new_tokens"],
            do_sample=made_with["do_sample"],
            temperature=made_with["temperature"],
            custom_prompt=made_with["prompt"] == "custom",
            min_pixels=low,
            max_pixels=high,
        )

    def answer(
        self, benchmark: Benchmark, prompts: Iterable[Prompt], store: PredictionStore
    ) -> Iterator[int]:
        """Add a prediction to `store` for each prompt; yield how many were added, as they are.

        Prompts are best given as `ordered` puts them.
        """
        kit_model, room = self.kit_model(benchmark.name), self.room
        # Rows are prepared by another thread, and a fast tokenizer serves one thread at a time.
        tokenizer = copy.deepcopy(self.processor.tokenizer)
        decoding = decoding_of(self.model, kit_model.generate_kwargs, tokenizer.pad_token_id)

        def row(prompt: Prompt) -> Row:
            names = benchmark.dataset, prompt.index
            return Row(
                prompt.index,
                lambda: kit_model.prepare(prompt.message, benchmark.dataset),
                derive_seed(self.seed, *names) if decoding.samples else None,
                prompt.images,
            )

        rows = [row(prompt) for prompt in prompts]
        done: dict[str, Prediction] = {}
        last = first = time.perf_counter()
        # While a GPU generates, the next batch is prepared. The CPU's cores are at work themselves.
        ahead = room.tokens if self.model.device.type == "cuda" else 0
        running = generate(self.model, rows, decoding, room, benchmark.name, ahead)
        with contextlib.closing(running) as finished:
            try:
                for row in finished:
                    text = tokenizer.decode(
                        row.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                    if not done:
                        first = time.perf_counter()
                    done[row.index] = Prediction(text, len(row.tokens), row.finished)
                    if time.perf_counter() - first >= FLUSH_S:
                        now = time.perf_counter()
                        store.add(done, now - last)
                        last, count, done = now, len(done), {}
                        yield count
            finally:  # what an error or a stop leaves behind is not lost
                if done:
                    store.add(done, time.perf_counter() - last)
        if done:
            yield len(done)


def ordered(
    prompts: Iterable[tuple[str, Message]], low: int | None, high: int | None
) -> list[Prompt]:
    """Return (index, message) pairs as prompts, about the longest first, those of an image together.

    An image counts a token per 32 x 32 pixels (patches of 16, merged two by two) after the limits
    `low` and `high`; text one per four characters.
    """
    made, tokens = [], {}
    for index, message in prompts:
        images = [Path(part["value"]) for part in message if part["type"] == "image"]
        characters = sum(len(part["value"]) for part in message if part["type"] != "image")
        count = characters / 4
        for path in images:
            try:
                with Image.open(path) as image:
                    pixels = max(image.width * image.height, low or 0)
            except (OSError, SyntaxError, ValueError):
                check_image(str(path))
                raise
            count += min(pixels, high or pixels) / 32**2
        name = digest([file_digest(path) for path in images]) if images else f"no image {index}"
        made.append((count, Prompt(index, message, name)))
        tokens[name] = max(tokens.get(name, 0.0), count)
    made.sort(key=lambda each: (-tokens[each[1].images], each[1].images, -each[0]))
    return [prompt for _, prompt in made]


def shares(prompts: list[Prompt], count: int) -> list[list[Prompt]]:
    """Deal prompts out in `count` shares of about the same work; those of an image stay together."""
    dealt: list[list[Prompt]] = [[] for _ in range(count)]
    for _, group in itertools.groupby(prompts, key=lambda prompt: prompt.images):
        min(dealt, key=len).extend(group)
    return dealt
