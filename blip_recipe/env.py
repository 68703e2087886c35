"""Print the versions, hardware and settings that a bug report needs, as Markdown.

blip-recipe env
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from importlib import metadata
from typing import TYPE_CHECKING

import blip_recipe
from blip_recipe.errors import run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

PROG = "python -m blip_recipe.env"

PREFIXES = (
    *("BLIP_RECIPE_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "ACCELERATE_", "FSDP_", "BNB_"),
    *("TORCH", "PYTORCH_", "CUDA_", "ROCR_", "HIP_", "NCCL_", "OMP_", "MKL_", "CODECARBON_", "JAVA_HOME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_"),
    *("SLURM_NNODES", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_GPUS"),
)
"""Beginnings of the names of environment variables that change how the package runs."""

SECRET_NAME = re.compile("TOKEN(?!IZERS)|KEY|SECRET|PASS|CREDENTIAL|AUTH|JWT|BEARER|COOKIE", re.IGNORECASE)
SECRET_VALUE = re.compile(r"hf_\w{6,}|(?<=://)[^/@\s]+@|(?<=[?&])[^=&\s]+=[^&\s]+")
"""A token of the Hub, and the user, password and query of a URL."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print one Markdown list item for each fact."""
    build_parser(prog).parse_args(argv)
    for name, value in describe_environment():
        print(f"- {name}: {value}")


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line, which takes no arguments."""
    return argparse.ArgumentParser(prog=prog, description="Print what a bug report needs. No token is printed.")


def describe_environment() -> Iterator[tuple[str, str]]:
    """Name and value of each fact."""
    yield "blip_recipe", blip_recipe.__version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", platform.platform()
    yield from describe_packages()
    yield from describe_hardware()
    yield "Java", describe_java()
    yield from describe_variables()


def describe_packages() -> Iterator[tuple[str, str]]:
    """The installed version of each dependency, optional ones included."""
    for name in dependencies():
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"


def dependencies() -> list[str]:
    """Names of the packages that this package depends on: of the installation, or of the checkout."""
    from blip_recipe.data.resources import PACKAGE

    try:
        lines = metadata.requires("blip-recipe") or []
    except metadata.PackageNotFoundError:
        lines = (PACKAGE.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines)
    return sorted({match[0] for match in found if match})


def describe_hardware() -> Iterator[tuple[str, str]]:
    """The build of torch, GPUs with their memory, cores, and RAM."""
    try:
        import torch
    except Exception as error:  # a broken installation of torch is what a report may be about
        yield "torch build", f"torch cannot be imported: {str(error).strip().splitlines()[0]}"
    else:
        builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
        yield "torch build", next((f"{name} {version}" for name, version in builds.items() if version), "CPU")
        yield "GPUs", "; ".join(describe_gpus()) or ("MPS" if torch.backends.mps.is_available() else "none")
    import psutil  # a dependency of accelerate

    yield "cores", str(os.cpu_count())
    memory = psutil.virtual_memory()
    yield "RAM", f"{gibibytes(memory.total)}, {gibibytes(memory.available)} available"


def describe_gpus() -> Iterator[str]:
    """Name and memory of each GPU that torch sees."""
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"{properties.name}, {gibibytes(properties.total_memory)}"


def gibibytes(number: int) -> str:
    """A number of bytes for people."""
    return f"{number / 2**30:.1f} GiB"


def describe_java() -> str:
    """The Java runtime for METEOR, SPICE and the PTB tokenizer, if there is one."""
    from blip_recipe.metrics.errors import JavaNotFoundError
    from blip_recipe.metrics.java import find_java

    try:
        return f"found at {find_java()}"
    except JavaNotFoundError:
        return "not found"


def describe_variables() -> Iterator[tuple[str, str]]:
    """The environment variables that change how the package runs, without secrets."""
    for name, value in sorted(os.environ.items()):
        if name.startswith(PREFIXES):
            yield name, "set, not shown" if SECRET_NAME.search(name) else SECRET_VALUE.sub("***", value)


if __name__ == "__main__":
    run_command(main)
