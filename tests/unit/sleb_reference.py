"""The plain search and the plain losses that SLEB's tests compare with: real drops, whole passes."""

import copy
import math

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from interlace.data.chat import load_records
from interlace.data.collate import Collator
from interlace.decoder.layers import decoder_layers
from interlace.decoder.load import load_processor
from interlace.decoder.surgery import drop_layers


def batches_of(folder, path, size):
    """Batches of `size` samples in the order of the files, images and text mixed, padded."""
    collate = Collator(load_processor(path), 256)
    records = list(load_records(folder / "samples"))
    return [collate(records[start : start + size]) for start in range(0, len(records), size)]


def other_texts(samples):
    """Write other texts of the same length under the same ids into the samples' files."""
    for file in samples.glob("*/*.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            for turn in row["texts"]:
                turn |= {"user": turn["user"][::-1], "assistant": turn["assistant"][::-1]}
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


@torch.no_grad()
def identity_search(model, batches, count):
    """The loop of jiwonsong-dev/SLEB, where a layer turned off passes its input on."""
    layers, off, removed = decoder_layers(model), set(), []

    def pass_on(index):
        def hook(_module, args, kwargs, _output):
            return (args[0] if args else kwargs["hidden_states"]) if index in off else None

        return hook

    handles = [
        layer.register_forward_hook(pass_on(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    for _ in range(count):
        losses = {}
        for index in [i for i in range(len(layers)) if i not in off][1:-1]:
            off.add(index)
            losses[index] = reference_loss(model, batches)
            off.remove(index)
        removed.append((min(losses, key=losses.get), losses))
        off.add(removed[-1][0])
    for handle in handles:
        handle.remove()
    return removed


@torch.no_grad()
def reference_loss(model, batches):
    """Sum over sequences of mean next-token loss x tokens, from all logits of a plain forward."""
    total = 0.0
    image = getattr(model.config, "image_token_id", None)
    for batch in batches:
        inputs = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        logits = model(**inputs, use_cache=False).logits.cpu()
        for row in range(len(logits)):
            real = batch["attention_mask"][row].bool()
            ids = batch["input_ids"][row][real]
            losses = torch.nn.functional.cross_entropy(
                logits[row][real][:-1], ids[1:], reduction="none"
            )
            if image is not None:
                losses = losses[ids[1:] != image]
            total += float(losses.mean()) * len(losses)
    return total


def loss_without(model, batches, out):
    """The loss of a copy of `model` whose layers `out` are really dropped."""
    pruned = copy.deepcopy(model)
    drop_layers(pruned, out)
    return reference_loss(pruned, batches)


def reference_search(model, batches, count, protect=()):
    """The reference's loop: [(layer, {candidate: loss})], every candidate a dropped copy."""
    steps = []
    for _ in range(count):
        removed = [layer for layer, _ in steps]
        alive = [i for i in range(len(decoder_layers(model))) if i not in removed]
        losses = {
            layer: loss_without(model, batches, [*removed, layer])
            for layer in alive[1:-1]
            if layer not in protect
        }
        best, lowest = None, math.inf
        for layer, loss in losses.items():
            if loss < lowest:
                best, lowest = layer, loss
        steps.append((best, losses))
    return steps
