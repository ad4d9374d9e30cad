"""Window scores from the definition: every boundary's states of a plain pass, in float64."""

import math

import torch

from tests.boundaries import BoundaryRecorder


@torch.inference_mode()
def window_scores(model, batch, max_window):
    """Sums (B, W, 2), counts (B, 2) and angles (B, W) of a batch, as `window_sums` gives them."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    with BoundaryRecorder(model) as record:
        model.base_model(**inputs, use_cache=False)
    return scores_of(record, batch, getattr(model.config, "image_token_id", None), max_window)


def scores_of(record, batch, image_token, max_window):
    """The same from a pass that `record` has watched."""
    states = [state.double().cpu() for state in (*record.inputs, record.outputs[-1])]
    real = batch["attention_mask"].bool()
    visual = batch["input_ids"] == (-1 if image_token is None else image_token)
    masks = torch.stack([real & ~visual, real & visual], -1).double()
    last = [int(row.nonzero()[-1]) for row in real]
    sums, angles = [], []
    for size in range(1, max_window + 1):
        for x, y in zip(states, states[size:], strict=False):
            cosine = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
            sums.append(cosine[..., None].where(masks > 0, 0).sum(1))
            at_last = torch.stack([row[at] for row, at in zip(cosine, last, strict=True)])
            angles.append(at_last.clamp(max=1).acos() / math.pi)
    stacked = (torch.stack(sums, 1), masks.sum(1), torch.stack(angles, 1))
    return tuple(part.numpy() for part in stacked)
