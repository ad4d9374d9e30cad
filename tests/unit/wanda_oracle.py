"""Wanda by brute force: whole forward passes, statistics in float64, one layer at a time."""

import torch

from interlace.decoder.layers import decoder_layers


def linears(layer):
    return [(n, m) for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)]


@torch.no_grad()
def oracle_masks(model, batches):
    """Prune `model`; return what became zero, by `<layer>.<name>`."""
    masks = {}
    for index, layer in enumerate(decoder_layers(model)):
        squares = {}

        def collect(name, squares=squares):
            def hook(_module, args):
                squares.setdefault(name, []).append(args[0].double().square().cpu())

            return hook

        handles = [m.register_forward_pre_hook(collect(n)) for n, m in linears(layer)]
        for batch in batches:
            model(**{k: v.to(model.device) for k, v in batch.items() if k != "labels"})
        for handle in handles:
            handle.remove()
        for name, linear in linears(layer):
            total = torch.zeros(linear.in_features, dtype=torch.float64)
            for batch, x in zip(batches, squares[name], strict=True):
                for row, real in zip(x, batch["attention_mask"].bool(), strict=True):
                    total += row[real].sum(0)
            metric = linear.weight.double().cpu().abs() * total.sqrt()
            mask = torch.tensor([_two_of_four(row) for row in metric.tolist()])
            linear.weight[mask.to(model.device)] = 0
            masks[f"{index}.{name}"] = mask
    return masks


def _two_of_four(row):
    """Whether each item is one of the two smallest of its four, the first of equal ones."""
    mask = [False] * len(row)
    for start in range(0, len(row), 4):
        for at in sorted(range(start, start + 4), key=row.__getitem__)[:2]:
            mask[at] = True
    return mask
