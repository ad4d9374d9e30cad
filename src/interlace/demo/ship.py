"""Round a trained base model to bfloat16, measure it, and put it beside the code.

python -m interlace.demo.ship --run DIR --model standin_8b [--out DIR]
"""

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from interlace.demo.base import build_processor, build_tokenizer, generation_config
from interlace.demo.exam import accuracy, held_out
from interlace.demo.forward import Encoder, Forward
from interlace.demo.models import WEIGHTS
from interlace.demo.pretrain import RECIPES, grow, new_model, recipe_digest
from interlace.io import atomic_path, write_json

CHECK = {"per_topic": 12, "seed": 5}  # the few questions a test asks again


def _hours(run: Path) -> float:
    """Training time by the run's log: steps of each stage at its pace."""
    seconds = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "s_per_step" in entry:
            seconds[entry["stage"]] = entry["step"] * entry["s_per_step"]
        elif "seconds" in entry:
            seconds[entry["stage"]] = entry["seconds"]
    return sum(seconds.values()) / 3600


def ship(run: Path, name: str, out: Path, questions: int = 60) -> dict:
    """Write weights, config, tokenizer, processor and recipe.json of a run; return the recipe.

    Takes the run's last checkpoint, in whatever stage it is; one of six layers is grown first.
    """
    recipe = RECIPES[name]
    tokenizer = build_tokenizer()
    found = torch.load(run / "state.pt", weights_only=True)
    deep = found["stage"] == "deep"
    model = new_model(tokenizer, name, recipe.small_layers, recipe.seed)
    if not deep:
        model.load_state_dict(found["model"])
    model = grow(model, recipe.shares, recipe.seed)
    if deep:
        model.load_state_dict(found["model"])
        assert found["step"] <= recipe.deep_steps
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    encoder = Encoder(tokenizer)
    topics, skills = accuracy(Forward(model, encoder), held_out(encoder, questions, seed=78))
    check, _ = accuracy(Forward(model, encoder), held_out(encoder, **CHECK))
    model.generation_config = generation_config(tokenizer)
    card = {
        "model": name,
        "recipe": asdict(recipe),
        "recipe_digest": recipe_digest(recipe),
        "finished": deep and found["step"] == recipe.deep_steps,
        "stage": found["stage"],
        "step": found["step"],
        "hours": round(_hours(run), 2),
        "versions": {p: version(p) for p in ("torch", "transformers", "tokenizers", "pillow")}
        | {"python": platform.python_version()},
        "held_out": {
            "questions_per_topic": questions,
            "seed": 78,
            "topics": topics,
            "skills": skills,
        },
        "check": check,
    }
    with atomic_path(out, directory=True) as folder:
        model.save_pretrained(folder)
        build_processor(tokenizer).save_pretrained(folder)
        weights = folder / "model.safetensors"
        state = {key: value.bfloat16().contiguous() for key, value in load_file(weights).items()}
        save_file(state, weights, metadata={"format": "pt"})
        weights.chmod(0o644)  # safetensors writes 0600
        write_json(folder / "recipe.json", card)
    return card


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Ship a trained base model.")
    parser.add_argument("--run", type=Path, required=True, help="folder of interlace.demo.pretrain")
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, help="default: the package's weights folder")
    parser.add_argument("--questions", type=int, default=60, help="held-out questions a topic")
    args = parser.parse_args()
    torch.set_num_threads(1)
    card = ship(args.run, args.model, args.out or WEIGHTS / args.model, args.questions)
    print(card)


if __name__ == "__main__":
    main()
