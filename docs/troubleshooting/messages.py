"""Keep the tables of messages in this folder as the code has them.

python docs/troubleshooting/messages.py

A message that was reworded is replaced in its table. New messages and vanished ones are listed: write or remove their
rows by hand.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

FOLDER = Path(__file__).parent
PACKAGE = FOLDER.parents[1] / "blip_recipe"

NO_MESSAGES = ("AssertionError", "AttributeError", "NotImplementedError", "StoppedError")
"""Exceptions whose texts are for developers, or say nothing of their own."""

EXPLAINING = re.compile("explain|validate|.*(fault|damage|error|reason)")
"""Functions whose returned texts become part of a message."""

MAKERS = re.compile(r"def (\w+)\([^)]*\) -> \w*Error:")
"""Functions that make an error of a text."""

VALUE = "…"
LONGEST = 100
"""Characters of a message that a table shows."""

ALIKE = 0.6
"""How alike a row and a message must be for one to be the other, reworded."""

ROW = re.compile(r"^\| `(?P<message>[^`]*)` \|")


def find_messages() -> dict[str, str]:
    """The messages of the package as tables show them, each with the file and line of its first place."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    makers = {"logger.warning"}.union(*(MAKERS.findall(source) for source in sources.values()))
    found: dict[str, str] = {}
    for path, source in sources.items():
        for line, template in _templates(ast.parse(source), makers):
            if shown := shorten(template):
                found.setdefault(shown, f"{path.relative_to(PACKAGE.parent).as_posix()}:{line}")
    return found


def shorten(template: str) -> str:
    """The part of a message that a table shows, or nothing if it has no words of its own."""
    text = " ".join(template.replace("`", "").replace("|", "/").split())
    if len(re.findall("[a-z]{2,}", text)) < 2:
        return ""
    if len(text) <= LONGEST:
        return text
    return text[: text.rindex(" ", 0, LONGEST)].rstrip(" :;,.(" + VALUE) + f" {VALUE}"


def _templates(tree: ast.Module, makers: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each message in a module, with `VALUE` for what is put in."""
    texts = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _makes_message(ast.unparse(node.func), makers):
            first = node.args[0]
            text = _text(texts.get(first.id, first) if isinstance(first, ast.Name) else first)
            yield node.lineno, re.sub("%[sdg]", VALUE, text)
        elif isinstance(node, ast.FunctionDef) and EXPLAINING.match(node.name):
            for each in ast.walk(node):
                if isinstance(each, ast.Return) and isinstance(each.value, (ast.Constant, ast.JoinedStr)):
                    yield each.lineno, _text(each.value)


def _makes_message(function: str, makers: set[str]) -> bool:
    return function in makers or (function.endswith("Error") and function not in NO_MESSAGES)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else VALUE
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return VALUE


def read_rows() -> dict[str, Path]:
    """The messages in the tables, each with its page."""
    return {
        found["message"]: page
        for page in sorted(FOLDER.glob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
        if (found := ROW.match(line))
    }


def compare() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Rows that are reworded in the code (old to new), messages without a row, and rows without a message.

    The latter two come with their places.
    """
    messages, rows = find_messages(), read_rows()
    missing = {message: place for message, place in messages.items() if message not in rows}
    stale = {message: page.name for message, page in rows.items() if message not in messages}
    alike = sorted(
        ((SequenceMatcher(None, old, new).ratio(), old, new) for old in stale for new in missing), reverse=True
    )
    reworded: dict[str, str] = {}
    for ratio, old, new in alike:
        if ratio >= ALIKE and old in stale and new in missing:
            reworded[old] = new
            del stale[old], missing[new]
    return reworded, missing, stale


def main() -> int:
    """Replace reworded messages; list what a person has to do."""
    reworded, missing, stale = compare()
    for page in FOLDER.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for old, new in reworded.items():
            text = text.replace(f"| `{old}` |", f"| `{new}` |")
        page.write_text(text, encoding="utf-8")
    for old, new in reworded.items():
        print(f"reworded: {old}\n      now: {new}")
    for message, place in missing.items():
        print(f"no row: {message} ({place})")
    for message, name in stale.items():
        print(f"no such message: {message} ({name})")
    return int(bool(missing or stale))


if __name__ == "__main__":
    sys.exit(main())
