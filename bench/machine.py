"""The machine and the versions a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peers_c import compiler

PACKAGES = ("gradfit", "torch", "llvmlite", "numpy", "scipy", "jax", "optax", "optimistix", "lmfit", "xarray")


def describe() -> dict[str, str]:
    """Say what this machine is and which versions are installed."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "machine": f"{_cpu()}, {_cores()} cores, load {load} at the start",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, C compiler: {_c_compiler()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _c_compiler() -> str:
    found = compiler()
    if found is None:
        return "none"
    lines = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0] if lines else "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
