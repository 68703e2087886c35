"""`blip-recipe`: every command by one name, the packaged recipes, shell completion, and what a bug report needs."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from commands import CHECKOUT, run_code, run_module

import blip_recipe
from blip_recipe.__main__ import COMMANDS, main
from blip_recipe.env import dependencies
from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.file import packaged_recipes
from blip_recipe.recipe.packaged import copy_recipe, list_recipes

TOO_SLOW_FOR_HELP = {"torch", "datasets", "argcomplete", "matplotlib", "peft"}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints on standard output."""
    main(list(arguments))
    return capsys.readouterr().out


def test_help_lists_every_command_and_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(command.help)}$", text, re.M) for name, command in COMMANDS.items())
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"blip_recipe {blip_recipe.__version__}\n"


def test_no_command_prints_the_help_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "finetune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "hint"),
    [("finetun", "Did you mean 'finetune'?"), ("captions", "'caption'"), ("xyz", "`blip-recipe --help`")],
)
def test_an_unknown_command_ends_with_2_and_names_the_nearest(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["blip-recipe", name])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith(f"error: There is no command {name!r}. ")
    assert hint in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("called", ["blip-recipe", "python -m blip_recipe"])
def test_usage_says_the_name_that_a_command_was_called_by(
    name: str, called: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/blip-recipe" if called == "blip-recipe" else "blip_recipe/__main__.py"])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {called} {name} ")
    module = importlib.import_module(COMMANDS[name].module)
    with pytest.raises(SystemExit):
        module.main(["--help"])
    own_name = "blip-recipe recipes" if name == "recipes" else f"python -m blip_recipe.{name}"
    assert capsys.readouterr().out.startswith(f"usage: {own_name} ")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "import sys; from blip_recipe.__main__ import run; sys.argv = ['blip-recipe', 'schema']; run()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


HELP = """
import subprocess
import sys
from blip_recipe.__main__ import COMMANDS, main
for name in ["", *COMMANDS]:
    try:
        main([*name.split(), "--help"])
    except SystemExit as ended:
        assert ended.code == 0
sys.stdout.flush()
print(sorted(set(sys.argv[1:]) & set(sys.modules)), file=sys.stderr)
"""


def test_help_of_every_command_imports_nothing_slow() -> None:
    done = run_code(HELP, *TOO_SLOW_FOR_HELP, cold=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_entry_point_of_the_package_runs_a_command() -> None:
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, function = scripts["blip-recipe"].split(":")
    code = f"import sys; from {module} import {function} as run; sys.argv[0] = 'blip-recipe'; sys.exit(run())"
    done = run_code(code, "finetune", "nowhere.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no recipe 'nowhere.json'.")


def test_recipes_lists_each_packaged_recipe_with_its_purpose_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = list_recipes()
    assert sorted(recipe.name for recipe in recipes) == [path.stem for path in packaged_recipes()]
    assert all(recipe.purpose and recipe.needs for recipe in recipes)
    assert not any(set("|`*[]") & set("".join(recipe)) for recipe in recipes)
    lines = shown(capsys, "recipes").splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [recipe.name for recipe in recipes]
    assert max(map(len, lines)) <= 100


def test_a_packaged_recipe_is_copied_byte_for_byte_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = next(path for path in packaged_recipes() if path.stem == "shapes_tiny").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert shown(capsys, "recipes", "shapes_tiny") == "shapes_tiny.json\n"
    assert shown(capsys, "recipes", "shapes_tiny.json", "new/folder") == f"{Path('new/folder/shapes_tiny.json')}\n"
    assert shown(capsys, "recipes", "shapes_tiny", "mine.json") == "mine.json\n"
    for copy in ("shapes_tiny.json", "new/folder/shapes_tiny.json", "mine.json"):
        assert Path(copy).read_bytes() == content
    Path("mine.json").write_text("mine")
    with pytest.raises(RecipeError, match=r"mine\.json exists: name another file, or add --overwrite"):
        copy_recipe("shapes_tiny", Path("mine.json"))
    assert Path("mine.json").read_text() == "mine"
    main(["recipes", "shapes_tiny", "mine.json", "--overwrite"])
    assert Path("mine.json").read_bytes() == content
    with pytest.raises(RecipeError, match=r"no recipe 'mine\.json'.*shapes_tiny\.json"):
        copy_recipe("mine.json", Path("other.json"))


def test_env_prints_a_markdown_list_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret1")
    monkeypatch.setenv("SLURM_JWT", "verysecret2")
    monkeypatch.setenv("HF_HOME", "http://hub.example/?key=verysecret3")
    monkeypatch.setenv("HUGGINGFACE_API_KEY", "anothersecret")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:password@hub.example:8080/x")
    monkeypatch.setenv("BLIP_RECIPE_CACHE", "/data/hf_verysecret1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("UNRELATED", "unrelated")
    text = shown(capsys, "env")
    facts = dict(re.fullmatch(r"- ([^:]+): (.+)", line).groups() for line in text.splitlines())  # type: ignore[misc, union-attr]
    assert facts["blip_recipe"] == blip_recipe.__version__
    assert facts["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"] == torch.__version__
    assert facts["transformers"] == transformers.__version__
    assert set(dependencies()) | {"platform", "torch build", "GPUs", "cores", "RAM", "Java"} <= set(facts)
    assert facts["cores"] == str(os.cpu_count())
    assert re.match(r"\d+\.\d GiB, \d+\.\d GiB available", facts["RAM"])
    assert facts["HF_TOKEN"] == facts["HUGGINGFACE_API_KEY"] == "set, not shown"
    assert facts["HF_ENDPOINT"] == "http://***hub.example:8080/x"
    assert facts["BLIP_RECIPE_CACHE"] == "/data/***"
    assert facts["TOKENIZERS_PARALLELISM"] == "false"
    assert not re.search("secret|password|unrelated", text)


def test_env_names_every_requirement() -> None:
    lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[ <>=\[;#]", line)[0] for line in lines if line[:1].isalpha()}
    assert len(names) > 10
    assert names <= set(dependencies())


def test_a_command_answers_although_torch_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "- torch build: torch cannot be imported: " in shown(capsys, "env")


Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """Complete a command line in an empty folder, as bash asks argcomplete to; gives the candidates."""

    def run(line: str) -> list[str]:
        output = tmp_path / "candidates"
        protocol = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(output),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
        (tmp_path / "place").mkdir(exist_ok=True)
        done = run_module("blip_recipe", env=protocol, cwd=tmp_path / "place", cold=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return [candidate.strip() for candidate in output.read_text().split("\n")]

    return run


def test_the_shell_completes_commands_recipes_keys_and_choices(complete: Complete, tmp_path: Path) -> None:
    assert complete("blip-recipe m") == ["match", "merge"]
    assert complete("blip-recipe finetune shapes_t") == ["shapes_tiny"]
    assert complete("blip-recipe capfilt shapes") == ["shapes_capfilt"]
    (tmp_path / "place" / "mine.yaml").write_text("seed: 1\n")
    assert complete("blip-recipe finetune mi") == ["mine.yaml"]
    assert complete("blip-recipe finetune mine.yaml --lora_") == [
        "--lora_r",
        "--lora_alpha",
        "--lora_dropout",
        "--lora_target_modules",
    ]
    assert complete("blip-recipe finetune mine.yaml --augmentation ") == ["blip", "none"]
    assert complete("blip-recipe finetune mine.yaml --use_peft t") == ["true"]
    assert complete("blip-recipe evaluate --predictions x --ref") == ["--references"]
    assert complete("blip-recipe capfilt x --filter_t") == ["--filter_threshold"]
    assert complete("blip-recipe caption model photo --dtype b") == ["bfloat16"]
    assert complete("blip-recipe recipes flickr") == ["flickr30k_retrieval", "flickr8k_lora"]
