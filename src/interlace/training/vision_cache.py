"""The vision features of all samples, computed once for every variant of a model.

What decides on an image's features - vision tower, merger, DeepStack mergers - is frozen and the
same in every variant. The samples are cut by index into chunks of `CHUNK`; a batch never spans two,
so that a run that was killed and taken up again makes the same files as one in one go.
"""

import glob
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.utils.data import DataLoader, Dataset

from interlace.data.chat import SampleDataset, load_records
from interlace.data.images import ImageDecodeError
from interlace.decoder.layers import num_deepstack, text_config
from interlace.decoder.load import DTYPES, default_device, load_model, load_processor
from interlace.errors import InputError
from interlace.io import atomic_path, claimed, digest, disk_full_told, remove, write_json
from interlace.progress import track
from interlace.provenance import stamp, versions
from interlace.training.vision_store import (
    RECORD,
    features_digest,
    made_of,
    read_chunk,
    tower_digest,
    write_index,
)
from interlace.training.vision_tower import tower_features, vision_tower, why_not

CHUNK = 256  # samples a file
PATCHES = 32768  # patches that go through the tower at once; an image above that goes alone
_ESTIMATED_FROM = 256  # samples

# What a worker sends: index, pixels (P, C), grids (I, 3), or why the sample is left out.
_Processed = tuple[int, np.ndarray | None, np.ndarray, dict[str, Any] | None]


def cache_vision(
    base: str | Path,
    samples: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model: str,
) -> None:
    """Write the folder `out` of the features that `base` gives for every sample to fine-tune on.

    `settings` is the config's section `finetune`: `precision` (the features' number format),
    `min_pixels`, `max_pixels`, and optionally `workers` and `device`. Chunks that are done are kept
    beside `out`, in a folder named after all that the features depend on, so that a killed run goes
    on after its last one; `out` appears when all are there. For a family whose features cannot be
    stored, `out` says why. Raises `InputError` where the disk is too small, no image can be
    processed or a feature is not finite.
    """
    base, out = Path(base), Path(out)
    reason = why_not(base)
    if reason:
        print(f"{model}: {reason}", file=sys.stderr)
        with atomic_path(out, directory=True) as partial:
            write_json(partial / RECORD, {"model": model, "why_not": reason})
        return
    way_out = "free some and run again, which goes on after its last chunk"
    with claimed(out), disk_full_told(str(out), way_out):
        _make(base, samples, out, settings, model)


def _make(base: Path, samples: str | Path, out: Path, settings: dict[str, Any], model: str) -> None:
    """Compute what is missing and give the folder its name."""
    start = time.monotonic()
    dtype, device = settings["precision"], torch.device(default_device(settings))
    processor = load_processor(base, settings.get("min_pixels"), settings.get("max_pixels"))
    records = load_records(samples)
    origin = made_of(base, processor, dtype, samples, records.ids)
    origin["weights"] = tower_digest(base)
    # The files' times are left out: the same weights, fetched again, make the same features.
    same = {key: value for key, value in origin.items() if key != "model_files"}
    run = digest([same, CHUNK, PATCHES, device.type, versions()])
    work = out.with_name(f".{out.name}-{run}")
    for other in set(out.parent.glob(f".{glob.escape(out.name)}-*")) - {work}:
        print(f"remove {other.name}: features of other settings", flush=True)
        remove(other)
    work.mkdir(parents=True, exist_ok=True)

    names = [f"chunk{number:06d}.safetensors" for number in range(-(-len(records) // CHUNK))]
    todo = [number for number, name in enumerate(names) if not _is_done(work / name, run)]
    if len(todo) < len(names):
        print(f"{len(names) - len(todo)} of {len(names)} chunks are there, going on", flush=True)
    if todo:
        indices = [i for chunk in todo for i in range(len(records))[_span(chunk)]]
        _Writer(base, records, processor, dtype, device, work, run).write(
            todo, names, indices, settings.get("workers", 0), out
        )
    chunks = [(name, read_chunk(work / name)) for name in names]
    left_out = [entry for _, chunk in chunks for entry in chunk["left_out"]]
    tokens = sum(row[1] for _, chunk in chunks for row in chunk["samples"])
    if left_out and not tokens:
        raise InputError(
            f"{samples}: no image of {len(left_out)} samples can be processed, first "
            f"{left_out[0]['id']}: {left_out[0]['detail']}; check the samples and the processor"
        )
    write_index(work, chunks)
    sizes = [[name, (work / name).stat().st_size] for name in names]
    provenance = stamp(
        "vision",
        config_digest=digest(same),
        seed=None,
        num_samples=len(records) - len(left_out),
        model_revision=origin["weights"],
    )
    write_json(
        work / RECORD,
        {
            "provenance": provenance,
            "model": model,
            "made_of": origin,
            "tokens": tokens,
            "bytes": sum(size for _, size in sizes),
            "left_out": left_out,
            "seconds": round(time.monotonic() - start, 1),
            "chunks": sizes,
        },
    )
    remove(out)
    work.replace(out)
    print(
        f"vision features of {len(records) - len(left_out)} samples: {tokens} tokens,"
        f" {_size(sum(size for _, size in sizes))}; {len(left_out)} left out",
        flush=True,
    )


def _span(chunk: int) -> slice:
    return slice(chunk * CHUNK, (chunk + 1) * CHUNK)


def _is_done(path: Path, run: str) -> bool:
    if not path.is_file():
        return False
    chunk = read_chunk(path)
    if chunk is None or chunk["run"] != run:
        print(f"{path.name} is torn and made again", flush=True)
        return False
    return True


class _Writer:
    """Computes chunks and writes them."""

    def __init__(
        self,
        base: Path,
        records: SampleDataset,
        processor: Any,
        dtype: str,
        device: torch.device,
        work: Path,
        run: str,
    ) -> None:
        self._base, self._records, self._processor = base, records, processor
        self._dtype, self._device, self._work, self._run = dtype, device, work, run

    def write(
        self, chunks: list[int], names: list[str], indices: list[int], workers: int, out: Path
    ) -> None:
        """Write `chunks` to the files `names[chunk]`; `indices` are all samples in them."""
        model = load_model(self._base, self._dtype)
        shape = (1 + num_deepstack(model.config), text_config(model.config).hidden_size)
        tower = vision_tower(model).to(self._device)
        del model  # the decoder is not needed
        self._check_disk(indices, shape, out)
        processed = DataLoader(
            _Processing(self._records, self._processor),
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            collate_fn=_as_is,
        )
        samples = iter(track(processed, "vision features", total=len(indices), unit="sample"))
        for chunk in chunks:
            count = len(range(len(self._records))[_span(chunk)])
            rows, left_out, features = [], [], [torch.empty((0, *shape), dtype=tower.dtype)]
            for batch in _within_budget(itertools.islice(samples, count)):
                if any(pixels is not None for _, pixels, _, _ in batch):
                    features.append(self._run_tower(tower, batch))
                for index, _, grids, why_left_out in batch:
                    if why_left_out is not None:
                        left_out.append(why_left_out)
                        continue
                    tokens = _num_tokens(tower, grids)
                    rows.append([self._records.ids[index], tokens, grids.tolist()])
            whole, start = torch.cat(features), 0
            for row in rows:
                row.append(features_digest(whole[start : start + row[1]]))
                start += row[1]
            about = {"run": self._run, "samples": rows, "left_out": left_out}
            self._save(self._work / names[chunk], whole, about)
        next(samples, None)  # says how long it took

    @torch.inference_mode()
    def _run_tower(self, tower: torch.nn.Module, batch: list[_Processed]) -> torch.Tensor:
        """Return the features (n, F, D) of the images of a batch that has some, on the CPU."""
        with_images = [sample for sample in batch if sample[1] is not None]
        pixels = torch.from_numpy(np.concatenate([pixels for _, pixels, _, _ in with_images]))
        grids = torch.from_numpy(np.concatenate([grids for _, _, grids, _ in with_images]))
        found = tower_features(tower, pixels.to(self._device), grids.to(self._device)).cpu()
        if not torch.isfinite(found).all():
            bad = int((~torch.isfinite(found).flatten(1).all(1)).nonzero()[0, 0])
            ends = np.cumsum([_num_tokens(tower, grids) for _, _, grids, _ in with_images])
            name = self._records.ids[with_images[int((ends <= bad).sum())][0]]
            raise InputError(
                f"{self._base}: the vision features of sample {name} are not finite; use a wider"
                " finetune.precision or check the weights"
            )
        return found

    def _save(self, path: Path, features: torch.Tensor, about: dict[str, Any]) -> None:
        free = shutil.disk_usage(self._work).free
        if features.nbytes + 2**20 > free:
            raise InputError(
                f"{self._work}: {_size(free)} are free and {path.name} needs"
                f" {_size(features.nbytes)}; free some and run the stage again, which goes on here"
            )
        with atomic_path(path) as partial:
            # Its save_file would leave a file of its own behind when killed, readable to us alone.
            partial.write_bytes(save({"features": features}, {"interlace": json.dumps(about)}))

    def _check_disk(self, indices: list[int], shape: tuple[int, int], out: Path) -> None:
        """Say how much is about to be written, estimated from some samples; is there room?"""
        rng = np.random.default_rng(0)
        some = rng.choice(indices, size=min(_ESTIMATED_FROM, len(indices)), replace=False)
        images = self._processor.image_processor
        tokens = 0
        for index in some:
            try:
                for image in self._records[int(index)].images:
                    patches = images.get_number_of_image_patches(image.height, image.width)
                    tokens += patches // images.merge_size**2
            except ValueError:  # an image that is left out
                continue
        per_token = shape[0] * shape[1] * DTYPES[self._dtype].itemsize
        needed = round(tokens / len(some) * len(indices) * per_token)
        free = shutil.disk_usage(self._work).free
        print(
            f"vision features of {len(indices)} samples: about {_size(needed)}"
            f" (from {len(some)} of them), {_size(free)} are free",
            flush=True,
        )
        if needed > free:
            raise InputError(
                f"{out}: the vision features need about {_size(needed)} and {_size(free)} are free;"
                " free some, lower finetune.max_pixels or data.fraction, or set"
                " finetune.levers.vision to live"
            )


def _num_tokens(tower: torch.nn.Module, grids_I3: np.ndarray) -> int:
    return int((grids_I3.prod(1) // tower.spatial_merge_size**2).sum())


def _within_budget(samples: Iterable[_Processed]) -> Iterator[list[_Processed]]:
    """Yield the samples in their order, as many at once as `PATCHES` allows, but at least one."""
    batch: list[_Processed] = []
    patches = 0
    for sample in samples:
        more = 0 if sample[1] is None else len(sample[1])
        if batch and patches + more > PATCHES:
            yield batch
            batch, patches = [], 0
        batch.append(sample)
        patches += more
    if batch:
        yield batch


class _Processing(Dataset):
    """Records as pixels. NumPy arrays: tensors from a worker would each hold a file open."""

    def __init__(self, records: SampleDataset, processor: Any) -> None:
        self._records, self._processor = records, processor

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> _Processed:
        """Return what the image processor makes of a sample's images, or why it does not."""
        nothing = np.empty((0, 3), np.int64)
        out = {"id": self._records.ids[index]}
        try:
            images = self._records[index].images
        except ImageDecodeError as error:
            detail = f"an image cannot be decoded: {error}"
            return index, None, nothing, out | {"reason": "dropped_undecodable", "detail": detail}
        if not images:
            return index, None, nothing, None
        try:
            made = self._processor.image_processor(images, return_tensors="pt")
        except ValueError as error:
            detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return index, None, nothing, out | {"reason": "dropped_unprocessable", "detail": detail}
        return index, made["pixel_values"].numpy(), made["image_grid_thw"].numpy(), None


def _as_is(item: Any) -> Any:
    return item


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
