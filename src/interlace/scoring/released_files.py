"""The names of the released code's score files. Loads nothing heavy: the workflow's grid asks."""

from pathlib import Path

from interlace.errors import InputError

SIZES = (1, 2, 3)
SUFFIX = "_pack{size}_hidden_state_similarities.json"


def released_names(model: str, dataset: str) -> list[str]:
    """Return the names of the released code's files for a model and a dataset, by window size."""
    return [f"{model}_{dataset}{SUFFIX.format(size=size)}" for size in SIZES]


def released_files(where: str | Path) -> list[Path]:
    """Return the three files at `where`: a folder that holds them once, or what they start with.

    Raises `InputError` where one is missing, or a folder holds those of several models or datasets.
    """
    where = Path(where)
    if not where.is_dir():
        files = [where.with_name(where.name + SUFFIX.format(size=size)) for size in SIZES]
        for file in files:
            if not file.is_file():
                raise InputError(
                    f"{file}: no such file; a folder or a prefix of three files is needed"
                )
        return files
    files: list[Path] = []
    for size in SIZES:
        found = sorted(where.glob("*" + SUFFIX.format(size=size)))
        if len(found) != 1:
            raise InputError(
                f"{where}: {len(found)} files *{SUFFIX.format(size=size)}; one is needed: give the "
                "folder of one model, or the part of the names before _pack"
            )
        files += found
    names = sorted({measured_as(file, size) for size, file in zip(SIZES, files, strict=True)})
    if len(names) > 1:
        raise InputError(
            f"{where}: files of several models or datasets ({', '.join(names)}); give the folder "
            "of one, or the part of the names before _pack"
        )
    return files


def measured_as(file: str | Path, size: int) -> str:
    """Return the `{MODEL}_{DATASET}` of a file's name: all that tells whose scores they are.

    Both may hold underscores, so that the two cannot be told apart.
    """
    return Path(file).name.removesuffix(SUFFIX.format(size=size))
