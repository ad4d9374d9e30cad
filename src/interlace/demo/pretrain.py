"""How the demo's base models are made, from nothing, on one CPU thread.

1. The vision tower learns to say what stands in every cell and in the cells around it.
2. Six decoder layers and the tower's mergers learn the questions.
3. The same with the late topics in the mix.
4. Every layer is copied six times, with graded shares of its output, to 36 layers.
5. All 36 layers are trained on.

Every step draws fresh scenes from the training split by (seed, stage, step) and is reproducible; a
killed run goes on from its last checkpoint.

    python -m interlace.demo.pretrain --model standin_8b --out DIR [--resume]
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from interlace.demo.base import (
    ARCHITECTURES,
    NUM_LAYERS,
    build_config,
    build_processor,
    build_tokenizer,
    generation_config,
)
from interlace.demo.drawing import render
from interlace.demo.exam import accuracy, held_out
from interlace.demo.forward import Batch, Encoder, Forward, Layout
from interlace.demo.lessons import VisionLessons, wallpaper
from interlace.demo.optimizer import Optimizer, rate_scale
from interlace.demo.topics import TOPICS, training_scene
from interlace.io import atomic_path, digest


@dataclass(frozen=True)
class Recipe:
    """All that decides a base model besides the code; steps, not seconds."""

    model: str
    vision_steps: int
    small_steps: int
    deep_steps: int
    seed: int = 0
    early_steps: int = 500  # of the small stage
    inventory: tuple[int, int, float] = (0, 0, 0.0)  # from, to step of the small stage, share
    small_stop: int = 0  # leave the small stage at this step of its schedule (0: at its end)
    late_steps: int = 0  # further steps of six layers, with the late topics in the mix
    small_layers: int = 6
    micro_batches: int = 3
    micro_tokens: int = 1300
    text_length: int = 96
    vision_rate: float = 2e-3
    small_rates: tuple[float, float] = (0.02, 2e-3)  # Muon on matrices, AdamW on the rest
    deep_rates: tuple[float, float] = (0.01, 1e-3)
    warmup: int = 40
    late_decay: float = 0.3
    small_decay: float = 0.15  # share of the steps in which the rate falls
    deep_decay: float = 0.8
    final_rate: float = 0.05
    shares: tuple[float, ...] = (0.4, 0.2, 0.15, 0.1, 0.1, 0.05)


RECIPES = {
    "standin_8b": Recipe(
        "standin_8b",
        vision_steps=600,
        small_steps=3300,
        inventory=(1700, 2300, 0.6),
        small_stop=2900,
        late_steps=1200,
        deep_steps=160,
    ),
    "standin_4b": Recipe(
        "standin_4b",
        vision_steps=600,
        small_steps=3600,
        inventory=(2100, 2700, 0.6),
        small_stop=3500,
        late_steps=1300,
        deep_steps=160,
        seed=1,
    ),
}


def recipe_digest(recipe: Recipe, scenes: int = 200) -> str:
    """Digest of the recipe's numbers and of what its data says (scenes and turns, not pixels)."""
    rng = random.Random("digest")
    names = sorted(TOPICS)
    data = []
    for i in range(scenes):
        scene = training_scene(names[i % len(names)], rng)
        items = sorted((c, i.kind, i.colour) for c, i in scene.items.items())
        data.append([items, [[t.skill, t.prompt, t.answer] for t in scene.turns]])
    topics = {name: (t.grid, t.share, t.early) for name, t in TOPICS.items()}
    return digest([asdict(recipe), asdict(ARCHITECTURES[recipe.model]), topics, data])


LATE = (("inventory", 0.25), ("presence", 0.22), ("hinted", 0.08))
Mix = tuple[tuple[str, float], ...]


def mix_of(recipe: Recipe, stage: str, step: int) -> Mix:
    """Topics with a share of their own at a step, beside those of `TOPICS`."""
    if stage != "small":
        return LATE
    first, last, share = recipe.inventory
    return (("inventory", share),) if first <= step < last else ()


def training_batch(
    encoder: Encoder, rng: random.Random, recipe: Recipe, early: bool = False, mix: Mix = ()
) -> Batch:
    """Rows of one topic, so many that they hold about `micro_tokens` tokens.

    `early`: early topics only, without options; `mix`: further topics and their shares.
    """
    names = [name for name, topic in TOPICS.items() if topic.early or not early]
    name = rng.choices(names, [TOPICS[n].share for n in names])[0]
    if mix:
        draw = rng.random()
        for other, share in mix:
            if 0 <= draw < share:
                name = other
            draw -= share
        if mix is LATE and name == "POPE":
            name = "presence"
    width, height = TOPICS[name].grid
    layout = Layout(1 if width else 0, width, height)
    rows = recipe.micro_tokens // (width * height + recipe.text_length + 6)
    wordy = 0.0 if early or (name == "inventory" and mix is not LATE) else 0.35
    scenes = [training_scene(name, rng, wordy) for _ in range(min(16, max(3, rows)))]
    pictures = [render(s.width, s.height, s.items, rng) for s in scenes] if width else []
    return encoder.batch(layout, pictures, [s.turns for s in scenes], recipe.text_length)


def new_model(
    tokenizer: Qwen2Tokenizer, name: str, num_layers: int, seed: int
) -> Qwen3VLForConditionalGeneration:
    """Fresh weights: 1/sqrt(fan in), outputs of the residual branches smaller with depth."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, name, num_layers))
    for key, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in key:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            if "o_proj" in key or "down_proj" in key:
                parameter.data.mul_((2 * num_layers) ** -0.5)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.06)
    nn.init.normal_(model.model.visual.pos_embed.weight, std=0.1)
    if not model.config.tie_word_embeddings:
        nn.init.normal_(model.lm_head.weight, std=0.06)
    model.tie_weights()
    model.generation_config = generation_config(tokenizer)
    return model


def grow(
    model: Qwen3VLForConditionalGeneration, shares: Sequence[float], seed: int
) -> Qwen3VLForConditionalGeneration:
    """Copy every decoder layer `len(shares)` times; each copy adds its share of the output."""
    config = copy.deepcopy(model.config)
    copies = len(shares)
    config.text_config.num_hidden_layers *= copies
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = None
    deep = Qwen3VLForConditionalGeneration(config)
    rng = random.Random(seed)
    state = {k: v for k, v in model.state_dict().items() if "language_model.layers." not in k}
    for i, layer in enumerate(model.model.language_model.layers):
        order = sorted(shares, reverse=True)
        if i:
            rng.shuffle(order)
        for j, share in enumerate(order):
            for key, value in layer.state_dict().items():
                scaled = "o_proj" in key or "down_proj" in key
                place = f"model.language_model.layers.{i * copies + j}.{key}"
                state[place] = value * share if scaled else value.clone()
    deep.load_state_dict(state, strict=True)
    deep.tie_weights()
    deep.generation_config = model.generation_config
    return deep


class Run:
    """A run of the recipe in a folder: state.pt (the last checkpoint) and log.jsonl."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        every: int = 100,
        eval_every: int = 500,
        questions: int = 40,
    ):
        self.recipe, self.out, self.questions = recipe, out, questions
        self.every, self.eval_every = every, eval_every
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = build_tokenizer()
        self.encoder = Encoder(self.tokenizer)
        self.losses: list[float] = []

    def log(self, **entry: object) -> None:
        """A line of JSON to the log and to the terminal."""
        line = json.dumps(entry)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as handle:
            handle.write(line + "\n")

    def save(self, name: str, **state: object) -> None:
        """Write a checkpoint, whole or not at all."""
        with atomic_path(self.out / name) as partial:
            torch.save(state, partial)

    def vision(self, model: Qwen3VLForConditionalGeneration) -> None:
        """Stage 1."""
        recipe, forward = self.recipe, Forward(model, self.encoder)
        lessons = VisionLessons(model.config.text_config.hidden_size, self.tokenizer)
        embeddings = model.model.language_model.embed_tokens.weight
        learned = [*model.model.visual.parameters(), *lessons.parameters(), embeddings]
        adamw = torch.optim.AdamW(
            learned, recipe.vision_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        began = time.monotonic()
        for step in range(recipe.vision_steps):
            rng = random.Random(f"{recipe.seed} vision {step}")
            if rng.random() < 0.7:
                width, height = rng.choice([(3, 3), (4, 3), (6, 3), (5, 3), (6, 4)])
                scenes = [wallpaper(rng, width, height) for _ in range(600 // (width * height))]
            else:
                names = [n for n, t in TOPICS.items() if 0 < t.grid[0] * t.grid[1] < 60]
                name = rng.choice(names)
                width, height = TOPICS[name].grid
                scenes = [training_scene(name, rng) for _ in range(600 // (width * height))]
            pixels = np.stack([render(width, height, s.items, rng) for s in scenes])
            merged, levels = forward.see(pixels)
            loss, right = lessons.loss([merged, *levels], scenes, embeddings)
            scale = rate_scale(step, recipe.vision_steps, recipe.warmup, 0.5, 0.02)
            adamw.param_groups[0]["lr"] = recipe.vision_rate * scale
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 1.0)
            adamw.step()
            adamw.zero_grad()
            self.losses.append(loss.item())
            if (step + 1) % self.every == 0:
                self.log(stage="vision", step=step + 1, loss=round(loss.item(), 3),
                         right=round(right, 3), seconds=round(time.monotonic() - began))  # fmt: skip
        model.lm_head.weight.grad = None

    def language(
        self,
        model: Qwen3VLForConditionalGeneration,
        stage: str,
        steps: int,
        rates: tuple[float, float],
        decay: float,
        start: int = 0,
        state: dict | None = None,
        stop: int = 0,
    ) -> None:
        """Stages 2, 3 and 5: answer questions, from step `start` on."""
        recipe, forward = self.recipe, Forward(model, self.encoder)
        for name, parameter in model.model.visual.named_parameters():
            parameter.requires_grad_("merger" in name)  # the rest has learned its lesson
        optimizer = Optimizer(model, rates)
        if state:
            optimizer.load_state_dict(state)
        tests = held_out(self.encoder, self.questions)
        began, recent = time.monotonic(), []
        stop = stop or steps
        for step in range(start, stop):
            rng = random.Random(f"{recipe.seed} {stage} {step}")
            early = stage == "small" and step < recipe.early_steps
            mix = mix_of(recipe, stage, step)
            batches = [
                training_batch(self.encoder, rng, recipe, early, mix)
                for _ in range(recipe.micro_batches)
            ]
            answers, total = 0, 0.0
            for batch in batches:
                loss, count = forward.loss(batch)
                # The scale of the sum does not matter: gradients are clipped, updates normalised.
                (loss / 100).backward()
                answers, total = answers + count, total + loss.item()
            optimizer.step(rate_scale(step, steps, recipe.warmup, decay, recipe.final_rate))
            recent.append(total / answers)
            self.losses.append(total / answers)
            done = step + 1
            if done % self.every == 0:
                pace = (time.monotonic() - began) / (done - start)
                mean = sum(recent[-self.every :]) / len(recent[-self.every :])
                self.log(stage=stage, step=done, loss=round(mean, 4), s_per_step=round(pace, 3))
            if done % self.eval_every == 0 or done == stop:
                topics, skills = accuracy(forward, tests)
                self.log(stage=stage, step=done, mean=round(np.mean(list(topics.values())), 1),
                         topics=topics, skills=skills)  # fmt: skip
            if done % self.every == 0 or done == stop:
                self.save("state.pt", stage=stage, step=done, model=model.state_dict(),
                          optimizer=optimizer.state_dict())  # fmt: skip

    def go(self, resume: bool = False) -> Qwen3VLForConditionalGeneration:
        """All stages, or what is left of them; returns the model of 36 layers."""
        recipe = self.recipe
        name, seed, small = recipe.model, recipe.seed, recipe.small_layers
        path = self.out / "state.pt"
        found = torch.load(path, weights_only=True) if resume and path.exists() else None
        stage = found["stage"] if found else "start"
        start, state = (found["step"], found["optimizer"]) if found else (0, None)
        model = new_model(self.tokenizer, name, small, seed)
        if stage == "start":
            self.vision(model)
            self.save("state.pt", stage="small", step=0, model=model.state_dict(), optimizer=None)
        if found and stage != "deep":
            model.load_state_dict(found["model"])
        if stage in ("start", "small"):
            self.language(
                model, "small", recipe.small_steps, recipe.small_rates, recipe.small_decay,
                start, state, recipe.small_stop,
            )  # fmt: skip
            start, state = 0, None
        if stage != "deep":
            self.language(
                model, "late", recipe.late_steps, recipe.small_rates, recipe.late_decay,
                start, state,
            )  # fmt: skip
            self.save("small.pt", model=model.state_dict())
            start, state = 0, None
        model = grow(model, recipe.shares, seed)
        assert len(model.model.language_model.layers) == len(recipe.shares) * small
        if stage == "deep":
            model.load_state_dict(found["model"])
        self.language(
            model, "deep", recipe.deep_steps, recipe.deep_rates, recipe.deep_decay, start, state
        )
        return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for state and log")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    for stage in ("vision", "small", "late", "deep"):
        parser.add_argument(f"--{stage}-steps", type=int, help="instead of the recipe's")
    args = parser.parse_args()
    steps = {f"{s}_steps": getattr(args, f"{s}_steps") for s in ("vision", "small", "late", "deep")}
    recipe = replace(RECIPES[args.model], **{k: v for k, v in steps.items() if v is not None})
    torch.set_num_threads(1)
    run = Run(recipe, args.out)
    model = run.go(args.resume)
    assert len(model.model.language_model.layers) == NUM_LAYERS
    with atomic_path(args.out / "final", directory=True) as folder:
        model.save_pretrained(folder)
        build_processor(run.tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main()
