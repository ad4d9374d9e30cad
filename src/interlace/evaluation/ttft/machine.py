"""What a measurement was made on: device, clocks, processor, versions."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

# What nvidia-smi is asked for, and what it is called in a result.
_QUERIES = {
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "clock_max_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
    "driver_version": "driver",
}


def device_name(device: torch.device) -> str:
    """Return what a result calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_model() or "CPU"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the processor, its cores and the load on them, threads, Python, and the GPU's memory."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu_memory_bytes"] = properties.total_memory
        found["capability"] = f"{properties.major}.{properties.minor}"
    return found


def identity(device: torch.device) -> dict[str, Any]:
    """Return what of a machine decides times, the same at every moment."""
    lasting = describe_machine(device)
    del lasting["load_average"]
    return {"device": device_name(device), **lasting}


def read_clocks(device: torch.device) -> dict[str, Any] | None:
    """Return the GPU's clocks, power limit, temperature and driver of this moment, by nvidia-smi.

    None on a CPU or where nvidia-smi does not answer.
    """
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = ["-i", f"GPU-{uuid}"] if uuid else []
    fields = ",".join(_QUERIES)
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *which]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_clocks(answer.stdout)


def parse_clocks(answer: str) -> dict[str, Any] | None:
    """Take a line of nvidia-smi apart; a value that it does not know is None."""
    values = [value.strip() for value in (answer.strip().splitlines() or [""])[0].split(",")]
    if len(values) != len(_QUERIES):
        return None
    return {key: _value(value) for key, value in zip(_QUERIES.values(), values, strict=True)}


def _value(text: str) -> float | str | None:
    if not text or text.startswith("["):  # [N/A], [Not Supported]
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine() or None
