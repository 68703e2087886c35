"""Shared code of the benchmarks: timing, a description of the machine, and output as table and JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def seconds_of(work: Callable[[], object]) -> float:
    """Measure the wall-clock seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def machine(packages: Iterable[str], **more: Any) -> dict[str, Any]:
    """Describe the machine, with the versions of `packages`."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in packages},
        **more,
    }


def processor() -> str:
    """The processor's name and kind, as `AMD EPYC (x86_64)`; without Linux's `/proc` only its kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def installed_version(package: str) -> str | None:
    """The version of `package`, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_results(path: Path, machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write the results as JSON, and print them as a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "results": rows}, indent=1) + "\n", encoding="utf-8")
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(str(value) for value in row.values()))
