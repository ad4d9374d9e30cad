"""Publish one checkpoint: its card with the scores known by now, and all its files, on a hub."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interlace.card import model_card
from interlace.errors import InputError
from interlace.io import digest, folder_digest, read_json, remove, write_json, write_text
from interlace.provenance import stamp
from interlace.publish import hub
from interlace.publish.scores import known_scores, score_section
from interlace.reporting.results import MODES
from interlace.stamps import checkpoint_digest


def publish(
    checkpoint: Path,
    evaluations: Sequence[Path],
    out: Path,
    settings: Mapping[str, Any],
    *,
    model: str,
    variant: str,
    standin: Sequence[str] = (),
) -> None:
    """Upload `checkpoint` as `<namespace>/<model>-<variant>` and write to `out` where it lies.

    `settings` is the config's section `publish` (namespace, private). `evaluations` are the result
    files there are of the variant and of dense; `standin` says why the run stands in, if it does.
    The checkpoint stays as it is: the card with scores is made in a folder of links beside `out`.
    Raises InputError, before anything is sent, without namespace or token and for a checkpoint
    whose weights are not those that its interlace.json describes.
    """
    if not settings.get("namespace"):
        raise InputError("publish.namespace: not set; give the hub's user or organisation")
    repo = f"{settings['namespace']}/{model}-{variant}"
    hub.check_repo(repo)
    hub.find_token()
    info = read_json(checkpoint / hub.MARK)
    if folder_digest(checkpoint, "*.safetensors") != info["digest"]:
        raise InputError(
            f"{checkpoint}: its weights are not those of its interlace.json; delete the folder and"
            " make it again"
        )
    revision = checkpoint_digest(checkpoint)
    results, stale = known_scores(evaluations, variant, revision)
    for file in stale:
        print(f"{file}: is of other weights than this checkpoint's; not on the card", flush=True)
    card = model_card(
        info,
        repo=repo,
        scores=score_section(results, model, variant),
        standin=results.standin_reasons(standin),
    )
    staged = out.with_name(f".{out.stem}.staged")
    files = _stage(checkpoint, staged, card)
    size = sum(files.values())
    print(f"{repo}: {len(files)} files, {size / 1e6:,.1f} MB", flush=True)
    message = f"{model} {variant}, weights {info['digest']}"
    done = hub.upload(staged, repo, private=bool(settings.get("private", True)), message=message)
    remove(staged)
    print(f"{repo}: {done.url}", flush=True)
    write_json(
        out,
        {
            "provenance": stamp(
                "published",
                config_digest=digest(dict(settings)),
                seed=None,
                num_samples=None,
                model_revision=info["digest"],
            ),
            "model": model,
            "variant": variant,
            **asdict(done),
            "bytes": size,
            "files": files,
            "scores": {mode: sorted(results.values(model, variant, mode)) for mode in MODES},
            "scores_left_out": [file.name for file in stale],
        },
    )


def _stage(checkpoint: Path, staged: Path, card: str) -> dict[str, int]:
    """Make `staged` a folder of links to the checkpoint's files with another card; return sizes."""
    remove(staged)
    for file in sorted(checkpoint.rglob("*")):
        name = file.relative_to(checkpoint)
        # Hidden files are Snakemake's and other tools'.
        if not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        if str(name) != "README.md":
            (staged / name).symlink_to(file.resolve())
    write_text(staged / "README.md", card)
    found = (file for file in sorted(staged.rglob("*")) if file.is_file())
    return {file.relative_to(staged).as_posix(): file.stat().st_size for file in found}
