"""Run the code blocks of a page in one process, in the working directory.

Takes a JSON file, `{"page": NAME, "blocks": [...]}`, and prints a JSON list of what failed. `test_blocks.py` says what
a page may use.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
LAUNCHER = re.compile(r"^(accelerate launch|torchrun)\b.*?(?= -m )")
ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$")
MODULES = {"capfilt": "blip_recipe.capfilt.__main__", "recipes": "blip_recipe.recipe.packaged"}
"""The modules of commands, where they are not called as the command."""
PARSED_ONLY = ("finetune", "capfilt")
"""Commands that train or that judge data: their lines are checked, not run."""
AFTER_PARSING = {
    "finetune": ("blip_recipe.recipe.job", "find_run"),
    "capfilt": ("blip_recipe.capfilt.__main__", "start_process"),
    "evaluate": ("blip_recipe.evaluate", "score_model"),
}
"""What a command calls once its recipe is read and checked; other commands parse their arguments alone."""
PROGRAMS = ("cat", "cp", "echo", "find", "head", "ls", "mkdir", "printf")
"""What a page may call besides the commands of this package."""


class ParsedError(BaseException):
    """The command line was parsed: the command need not go on."""


def main() -> None:
    """Run the blocks in their order."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "docs"}
    failures = []
    with contextlib.redirect_stdout(sys.stderr):
        for block in request["blocks"]:
            where = f"{request['page']}:{block['line']}"
            try:
                run_block(block, where, names)
            except (Exception, SystemExit):
                failures.append(f"{where}\n{block['text']}\n{traceback.format_exc()[-3000:]}")
    print(json.dumps(failures))


def run_block(block: dict[str, Any], where: str, names: dict[str, Any]) -> None:
    """Run a block, or only read the commands in it if it is exempt."""
    language, text, exempt = block["language"], block["text"], bool(block["needs"])
    if language == "python":
        code = compile("\n" * block["line"] + text, where, "exec")
        if not exempt:
            exec(code, names)
    elif language == "bash":
        for line in logical_lines(text):
            run_line(line, exempt)
    elif language in ("json", "yaml"):
        path = Path(block["title"] or f"block_{block['line']}.{language}")
        path.write_text(text, encoding="utf-8")
        check_recipe_file(path)
    elif language == "jsonl":
        for line in text.splitlines():
            json.loads(line)


def check_recipe_file(path: Path) -> None:
    """Read a recipe, or a part of one, as `finetune` or `capfilt` does."""
    text = path.read_text(encoding="utf-8")
    if re.search("captioner_name_or_path|filter_name_or_path|filter_threshold", text):
        parse_command("capfilt", [str(path)])
    else:
        parse_command("finetune", [str(path)], only_read="dataset_name" not in text)


def logical_lines(text: str) -> list[str]:
    """The commands of a shell block: without comments, continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def run_line(line: str, exempt: bool) -> None:
    """Run a command line, or only parse what is ours in it."""
    before, _, last = line.rpartition(" | ")
    launched = LAUNCHER.match(last)
    last = LAUNCHER.sub("python", last)
    words = shlex.split(last, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[words.index(">") + 1]
    program = Path(words[0]).name
    if program == "make":
        check_targets(words[1:])
    elif program in ("python", "python3", "blip-recipe"):
        module, arguments = find_module(words)
        if module is None:
            assert exempt, f"{line!r} is not run here: mark the block"
        elif module.startswith("blip_recipe."):
            command = module.removeprefix("blip_recipe.")
            if exempt or command in PARSED_ONLY or launched:
                parse_command(command, arguments, only_read=bool(launched))
            else:
                text = run_command(command, arguments, read_pipe(before))
                if target:
                    Path(target).write_text(text, encoding="utf-8")
        else:
            assert find_spec(module), f"there is no module {module}"
    elif program == "pytest":
        missing = [word for word in words[1:] if "/" in word and not (CHECKOUT / word.split("::")[0]).exists()]
        assert not missing, f"there is no {missing}"
    elif not exempt:
        assert program in PROGRAMS, f"{line!r} is not run here: mark the block"
        subprocess.run(["bash", "-ec", line], check=True)


def find_module(words: list[str]) -> tuple[str | None, list[str]]:
    """The module that a command line runs, and its arguments."""
    if Path(words[0]).name == "blip-recipe":
        return f"blip_recipe.{words[1]}", words[2:]
    if words[1:2] != ["-m"] or words[2] in ("venv", "pip"):
        return None, []
    return words[2], words[3:]


def parse_command(command: str, arguments: list[str], *, only_read: bool = False) -> None:
    """Let a command read and check its arguments, and stop there.

    Args:
        command: Its name.
        arguments: Its words.
        only_read: Leave out the checks across keys: some keys belong to several processes, and a part of a recipe
            does not have all keys.
    """
    module, name = AFTER_PARSING.get(command, ("argparse", ""))
    if command == "finetune" and only_read:
        name = "check_recipe"
    if command == "evaluate" and "--predictions" in arguments:
        name = "score_file"
    with stopping_at(importlib.import_module(module), name) if name else stopping_after_parsing():
        call_main(command, arguments)


@contextlib.contextmanager
def stopping_at(module: Any, name: str) -> Iterator[None]:
    """Stop when a function of a module is called."""

    def stop(*_: Any, **__: Any) -> None:
        raise ParsedError

    real = getattr(module, name)
    setattr(module, name, stop)
    try:
        with contextlib.suppress(ParsedError):
            yield
    finally:
        setattr(module, name, real)


@contextlib.contextmanager
def stopping_after_parsing() -> Iterator[None]:
    """Stop when a parser has parsed its arguments."""
    parsers = ("parse_args", "parse_intermixed_args")
    real = {name: getattr(argparse.ArgumentParser, name) for name in parsers}

    def parse_with(name: str) -> Callable[..., None]:
        def parse(parser: argparse.ArgumentParser, *words: Any, **options: Any) -> None:
            real[name](parser, *words, **options)
            raise ParsedError

        return parse

    for name in parsers:
        setattr(argparse.ArgumentParser, name, parse_with(name))
    try:
        with contextlib.suppress(ParsedError):
            yield
    finally:
        for name in parsers:
            setattr(argparse.ArgumentParser, name, real[name])


def run_command(command: str, arguments: list[str], stdin: io.TextIOWrapper) -> str:
    """Run a command in this process; returns what it printed."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    kept = sys.stdin
    sys.stdin = stdin
    try:
        with contextlib.redirect_stdout(printed):
            call_main(command, arguments)
    finally:
        sys.stdin = kept
    printed.seek(0)
    return printed.read()


def call_main(command: str, arguments: list[str]) -> None:
    """Call a command's `main` as its process does."""
    kept = sys.argv
    sys.argv = [command, *arguments]
    try:
        importlib.import_module(MODULES.get(command, f"blip_recipe.{command}")).main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = kept


def read_pipe(line: str) -> io.TextIOWrapper:
    """What a command line before a pipe prints; nothing without one."""
    output = subprocess.run(["bash", "-ec", line], check=True, capture_output=True).stdout if line else b""
    return io.TextIOWrapper(io.BytesIO(output), encoding="utf-8")


def check_targets(words: list[str]) -> None:
    """Find targets that the Makefile has not."""
    targets = re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    missing = [word for word in words if "=" not in word and word not in targets]
    assert not missing, f"the Makefile has no target {missing}"


if __name__ == "__main__":
    main()
