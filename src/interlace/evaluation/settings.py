"""What an evaluation is made with: checked before anything is loaded, recorded in every result."""

from collections.abc import Sequence
from typing import Any

from interlace.errors import InputError
from interlace.evaluation.benchmarks import OCRBENCH_MIN_PIXELS, is_loopback

# Qwen3VLChat's own values, which the released code samples with.
TOP_P, TOP_K, TEMPERATURE = 0.8, 20, 0.7
MIN_PIXELS = 4 * 32 * 32  # qwen_vl_utils: four visual tokens

_SPEED = ("batch_size", "batch_tokens", "replicas", "groups")
_GRADER_SPEED = ("timeout_s", "retries", "parallel", "price", "budget")


def deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that change how long it takes, and nothing of the result.

    A loopback grader's address goes too, since its port changes with every run.
    """
    grader = {k: v for k, v in (settings.get("grader") or {}).items() if k not in _GRADER_SPEED}
    if is_loopback(grader.get("base_url") or ""):
        grader["base_url"] = "loopback"
    return {k: v for k, v in settings.items() if k not in _SPEED} | {"grader": grader}


def check_settings(benchmarks: Sequence[str], settings: dict[str, Any], mode: str) -> None:
    """Raise InputError for evaluation settings that cannot work, before anything is loaded.

    `grading.check_grader` looks at the grader's.
    """
    if mode not in settings["modes"]:
        raise InputError(
            f"evaluation.modes: '{mode}' is unknown (possible: {', '.join(settings['modes'])})"
        )
    for key, possible in (
        ("engine", ("batched", "vlmevalkit")),
        ("prompt", ("dataset", "custom")),
        ("decoding", ("greedy", "released")),
    ):
        if settings.get(key, possible[0]) not in possible:
            raise InputError(
                f"evaluation.{key}: '{settings[key]}' is unknown (possible: {', '.join(possible)})"
            )
    temperature = settings.get("temperature")
    if settings.get("decoding") == "released" and temperature is not None and temperature <= 0:
        raise InputError(
            f"evaluation.temperature: {temperature} is not above 0; set decoding to greedy to sample "
            "nothing"
        )
    for key, count in (
        ("limit", settings.get("limit")),
        (f"modes.{mode}", settings["modes"][mode]),
    ):
        if count is not None and count < 1:
            raise InputError(f"evaluation.{key}: {count} is below 1; raise it")
    check_pixels(benchmarks, settings)


def check_pixels(benchmarks: Sequence[str], settings: dict[str, Any]) -> None:
    """Raise InputError for limits on image sizes that exclude each other or OCRBench."""
    for name in benchmarks:
        low, high = pixel_limits(settings, name)
        where = (
            f"evaluation.pixels.{name}" if name in (settings.get("pixels") or {}) else "evaluation"
        )
        if high and high < MIN_PIXELS:
            raise InputError(
                f"{where}.max_pixels: {high} is below {MIN_PIXELS}, the smallest image that Qwen3-VL "
                "reads; raise it"
            )
        if name == "OCRBench" and high and high < OCRBENCH_MIN_PIXELS:
            raise InputError(
                f"{where}.max_pixels: {high} is below {OCRBENCH_MIN_PIXELS}, which VLMEvalKit gives "
                "OCRBench's images at least; raise it or leave OCRBench out"
            )
        if low and high and low > high:
            raise InputError(f"{where}.min_pixels: {low} is more than max_pixels, {high}")


def pixel_limits(settings: dict[str, Any], benchmark: str | None) -> tuple[int | None, int | None]:
    """Return the smallest and largest image, in pixels, that a benchmark is read at; None: no limit.

    `pixels[benchmark]` comes before `min_pixels` and `max_pixels`; OCRBench's lower limit is
    VLMEvalKit's own.
    """
    own = (settings.get("pixels") or {}).get(benchmark) or {}
    low, high = (own.get(key) or settings.get(key) for key in ("min_pixels", "max_pixels"))
    return (OCRBENCH_MIN_PIXELS if benchmark == "OCRBench" else low), high


def generation(settings: dict[str, Any], mode: str, benchmark: str | None) -> dict[str, Any]:
    """Return everything that decides what is generated, apart from checkpoint, rows and seed."""
    sample = settings.get("decoding", "greedy") == "released"
    low, high = pixel_limits(settings, benchmark)
    temperature = settings.get("temperature")
    temperature = TEMPERATURE if temperature is None else temperature
    return {
        "max_new_tokens": int(settings["modes"][mode]),
        "do_sample": sample,
        "temperature": temperature if sample else None,
        "top_p": TOP_P if sample else None,
        "top_k": TOP_K if sample else None,
        "prompt": settings.get("prompt", "dataset"),
        "min_pixels": low,
        "max_pixels": high,
        "dtype": settings.get("dtype", "float32"),
        "attention": settings.get("attention", "sdpa"),
        "engine": settings.get("engine", "batched"),
    }
