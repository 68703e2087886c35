"""Whatever is wrong with a recipe, data, a model or arguments: exit code 2, one message to act on, nothing written.

The table runs each command's `main` as its process does, in one process for all, because imports take most of the time;
a few run as processes of their own.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
from captioners import draw_pictures, save_captioner
from commands import run_module

from blip_recipe.errors import run_command

LIMIT = 10.0
"""Seconds that a refusal may take."""


@dataclass
class Wrong:
    """A wrong input.

    Args:
        command: Of `blip_recipe`.
        words: The command line; `{place}` is the folder of the test, `{model}` a captioner, `{data}` pictures.
        says: What the message must name.
        keys: A recipe's, written to `{place}/recipe.json`, over those that would work.
        files: More files, by name in `{place}`: text, bytes, JSON, or a function that is given the path.
    """

    command: str
    words: str
    says: tuple[str, ...]
    keys: dict[str, Any] | None = None
    files: dict[str, Any] = field(default_factory=dict)


def recipe(says: str, /, *more: str, files: dict[str, Any] | None = None, words: str = "", **keys: Any) -> Wrong:
    """A wrong recipe for `finetune`."""
    return Wrong("finetune", f"{{place}}/recipe.json {words}", (says, *more), keys, files or {})


def raw(content: str | bytes, *says: str) -> Wrong:
    """A file that is no recipe."""
    return Wrong("finetune", "{place}/recipe.json", says, files={"recipe.json": content})


def copy_of(name: str, *changes: Callable[[Path], object]) -> Callable[[Path, dict[str, str]], None]:
    """Writes a changed copy of one of the things that work."""

    def write(path: Path, names: dict[str, str]) -> None:
        shutil.copytree(names[name], path)
        for change in changes:
            change(path)

    return write


def edit_json(name: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut(name: str, keep: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def folder_of(*files: str) -> Callable[[Path, dict[str, str]], None]:
    def write(path: Path, names: dict[str, str]) -> None:
        path.mkdir()
        for name in files:
            (path / name).write_text("text")

    return write


COCO = {"images": [{"id": 1, "file_name": "0000.png"}], "annotations": [{"image_id": 1, "caption": "a dot"}]}
BLIP2 = {"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}
VQA = {"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}
TRAINED: dict[str, Any] = {"model_name_or_path": "{model}"}

CASES: dict[str, Wrong] = {
    # The file.
    "no such recipe": Wrong("finetune", "{place}/none.json", ("none.json", "shapes_tiny.json")),
    "a folder for a recipe": Wrong("finetune", "{place}", ("no recipe", "shapes_tiny.json")),
    "not JSON": raw("{'a': 1}", "recipe.json", "JSON"),
    "empty": raw("", "recipe.json", "JSON"),
    "a list": raw("[1]", "list", "object"),
    "a key twice": raw('{"seed": 1, "seed": 2}', "'seed'", "twice"),
    "UTF-16": raw('{"seed": 1}'.encode("utf-16"), "recipe.json", "UTF-8"),
    "not a number": raw('{"learning_rate": NaN}', "recipe.json", "NaN"),
    "an endless number": raw('{"learning_rate": -Infinity}', "recipe.json", "Infinity"),
    "nested without end": raw("[" * 100_000, "recipe.json", "nested"),
    "a number of 5000 digits": raw('{"seed": ' + "9" * 5000 + "}", "recipe.json", "JSON"),
    # Keys and types.
    "unknown key": recipe("'lora_rnak'", "'lora_r'", lora_rnak=4),
    "a nested recipe": recipe("'model'", "no key", model={"lora_r": 4}),
    "text for an integer": recipe("lora_r", "'three'", lora_r="three"),
    "a fraction for an integer": recipe("lora_r", "1.5", lora_r=1.5),
    "an object for a number": recipe("learning_rate", learning_rate={"value": 1}),
    "a list for a number": recipe("learning_rate", learning_rate=[1, 2]),
    "an object in a list": recipe("caption_column", caption_column=[{"a": 1}]),
    "a nested list": recipe("caption_column", caption_column=[["a"]]),
    "text for a truth value": recipe("use_peft", "maybe", use_peft="maybe"),
    "no such choice": recipe("augmentation", "'heavy'", "blip", augmentation="heavy"),
    "no such optimiser": recipe("optim", "adamw_of_mine", optim="adamw_of_mine"),
    "a token": recipe("hub_token", "HF_TOKEN", hub_token="hf_secret"),
    "a token for Trainer": recipe("push_to_hub_token", push_to_hub_token="hf_secret"),
    # Numbers out of range.
    "no epochs": recipe("num_train_epochs", num_train_epochs=0),
    "no pictures a step": recipe("per_device_train_batch_size", per_device_train_batch_size=0),
    "no pictures an evaluation step": recipe("per_device_eval_batch_size", per_device_eval_batch_size=-1),
    "no accumulation": recipe("gradient_accumulation_steps", gradient_accumulation_steps=0),
    "a negative rate": recipe("learning_rate", learning_rate=-1.0),
    "a rank of nothing": recipe("lora_r", lora_r=0, use_peft=True, **TRAINED),
    "dropout over one": recipe("lora_dropout", lora_dropout=1.5, use_peft=True, **TRAINED),
    "smoothing over one": recipe("label_smoothing_factor", label_smoothing_factor=1.5),
    "a seed below 0": recipe("seed is -1", "2**32", seed=-1),
    "too large a seed": recipe("seed is 4294967296", "2**32", seed=2**32),
    "steps below 0": recipe("max_steps is -5", "num_train_epochs", max_steps=-5),
    "no tracker": recipe("report_to", "'foo'", "tensorboard", report_to="foo"),
    "no captions a picture": recipe("captions_per_image", captions_per_image=0),
    "no samples": recipe("max_train_samples", max_train_samples=0),
    "short captions": recipe("max_caption_length", max_caption_length=1),
    "captions over the positions": recipe("max_caption_length", "tokens", max_caption_length=4000),
    "generated captions over the positions": recipe("generation_max_length", "tokens", generation_max_length=4000),
    "no beams": recipe("generation_num_beams", generation_num_beams=0),
    "minimum over maximum": recipe("generation_min_length", generation_min_length=21, generation_max_length=20),
    "a prompt without room": recipe(
        "prompt", "generation_max_length", prompt="a picture of " * 9, generation_max_length=20
    ),
    "no side": recipe("image_size", image_size=0),
    "a side that patches do not fill": recipe("image_size", "100", "48", image_size=100),
    "no threads": recipe("dataloader_num_workers", dataloader_num_workers=-1),
    # Combinations.
    "both precisions": recipe("load_in_8bit", "load_in_4bit", load_in_8bit=True, load_in_4bit=True, **TRAINED),
    "quantised without an adapter": recipe("use_peft", load_in_4bit=True, **TRAINED),
    "4 bits of odd widths": recipe("load_in_4bit", "64", load_in_4bit=True, use_peft=True,
        model_name_or_path="{place}/m",
        files={"m": copy_of("model", edit_json("config.json", text_config={"hidden_size": 48}))}),
    "nothing to merge": recipe("merge_adapter", "use_peft", merge_adapter=True),
    "an adapter on a frozen encoder": recipe("freeze_vision", "qkv", freeze_vision=True, use_peft=True,
        lora_target_modules=["qkv"], **TRAINED),
    "an adapter of no layer": recipe("lora_target_modules", "nope", use_peft=True, lora_target_modules=["nope"],
        **TRAINED),
    "no such metric": recipe("'blue'", "bleu", metrics=["blue"]),
    "no metrics": recipe("metrics", metrics=[]),
    "scores without a split": recipe("eval_split", eval_strategy="epoch"),
    "best by what is not scored": recipe("meteor", metric_for_best_model="meteor", eval_strategy="epoch",
        eval_split="train"),
    "both kinds of floats": recipe("bf16", "fp16", bf16=True, fp16=True),
    "one process to shard a model": recipe("FSDP", "accelerate launch", fsdp=True),
    "no data": recipe("dataset_name", dataset_name=None),
    "no training split": recipe("train_split", train_split=""),
    "a key without its value": recipe("seed", "expected one argument", words="--seed"),
    "a word too many": recipe("surplus", words="surplus"),
    # Data.
    "no such folder": recipe("{place}/dtaa", "has no dtaa", dataset_name="{place}/dtaa"),
    "no such split": recipe("'test'", "train", train_split="test"),
    "no such column": recipe("'words'", "text", caption_column=["words"]),
    "no such image_root": recipe("image_root", dataset_name="{place}/c.json", image_root="{place}/none",
        files={"c.json": COCO}),
    "a folder without pictures": recipe("Expected an imagefolder", dataset_name="{place}/f",
        files={"f": folder_of("notes.md")}),
    "an empty folder": recipe("Expected an imagefolder", dataset_name="{place}/f", files={"f": folder_of()}),
    "pictures without captions": recipe("captions", dataset_name="{place}/f",
        files={"f": copy_of("data", remove("metadata.jsonl"))}),
    "a picture for a captions file": recipe("expected a file that ends in .csv", dataset_name="{data}/0000.png"),
    "no captions file": recipe("COCO captions JSON", dataset_name="{place}/c.json", files={"c.json": {"a": 1}}),
    "broken annotations": recipe("2 of 3 annotations", "numbers 1, 2", dataset_name="{place}/c.json",
        files={"c.json": COCO | {"annotations": [COCO["annotations"][0], {"caption": "x"}, 7]}}),
    "a captions file without images": recipe("empty", dataset_name="{place}/c.json",
        files={"c.json": {"images": [], "annotations": []}}),
    "pictures that cannot be read": recipe("2 of 3 rows", "image_id 0", "image_id 2", "on_bad_image",
        dataset_name="{place}/f", files={"f": copy_of("data", cut("0000.png", 0), cut("0002.png", 50))}),
    "a path outside": recipe("1 of 1 paths", dataset_name="{place}/c.json",
        files={"c.json": COCO | {"images": [{"id": 1, "file_name": "../x.png"}]}}),
    # Models.
    "no such model": recipe("{place}/none", model_name_or_path="{place}/none"),
    "another kind of model": recipe("blip-2", "expected a BLIP captioner", model_name_or_path="{place}/m",
        files={"m/config.json": BLIP2}),
    "another kind of BLIP": recipe("BlipForQuestionAnswering", model_name_or_path="{place}/m",
        files={"m/config.json": VQA}),
    "a configuration that is no JSON": recipe("{place}/m", model_name_or_path="{place}/m",
        files={"m": copy_of("model", cut("config.json", 20))}),
    "a configuration that is a list": recipe("{place}/m", model_name_or_path="{place}/m",
        files={"m": copy_of("model", lambda folder: (folder / "config.json").write_text("[]"))}),
    "cut weights": recipe("{place}/m", "cannot be read", model_name_or_path="{place}/m",
        files={"m": copy_of("model", cut("model.safetensors", 5000))}),
    "no weights": recipe("{place}/m", model_name_or_path="{place}/m",
        files={"m": copy_of("model", remove("model.safetensors"))}),
    "no tokenizer": recipe("{place}/m", "tokenizer", model_name_or_path="{place}/m",
        files={"m": copy_of("model", remove("tokenizer.json"), remove("tokenizer_config.json"))}),
    "weights of another shape": recipe("{place}/m", model_name_or_path="{place}/m",
        files={"m": copy_of("model", edit_json("config.json", vision_config={"hidden_size": 64, "patch_size": 16}))}),
    "an adapter for a base": recipe("adapter", "merge", model_name_or_path="{place}/m",
        files={"m/adapter_config.json": {"base_model_name_or_path": "x"}}),
    # Where results go.
    "a file for a directory": recipe("{place}/file", output_dir="{place}/file", files={"file": "mine"}),
    "a directory below a file": recipe("{place}/file", output_dir="{place}/file/out", files={"file": "mine"}),
    "the model's own directory": recipe("output_dir", "model_name_or_path", output_dir="{model}", **TRAINED),
    "no directory": recipe("output_dir", "empty", output_dir=" "),
    "a name that is too long": recipe("output_dir", "name", output_dir="x" * 300),
    "a name that no file has": recipe("output_dir", "name", output_dir="a\0b"),
    "the directory of the pictures": recipe("output_dir", "dataset_name", "{data}", output_dir="{data}"),
    "a directory with another README": recipe("{place}/out", "README.md", "overwrite_output_dir",
        files={"out/README.md": "my notes"}),
    "a checkpoint that is none": recipe("resume_from_checkpoint", resume_from_checkpoint="{place}/none"),
    # The other commands.
    "evaluate nothing": Wrong("evaluate", "--eval_split train", ("dataset_name", "--predictions")),
    "evaluate without a split": Wrong("evaluate", "--model {model} --dataset_name {data}", ("eval_split",)),
    "evaluate no model": Wrong("evaluate", "--model {place}/none --dataset_name {data} --eval_split train", ("none",)),
    "evaluate an unknown key": Wrong("evaluate", "--modle x", ("'modle'", "'model'")),
    "predictions without references": Wrong("evaluate", "--predictions {place}/p.json", ("references",),
        files={"p.json": [{"image_id": 1, "caption": "x"}]}),
    "references without predictions": Wrong("evaluate", "--references {place}/c.json", ("--predictions",),
        files={"c.json": COCO}),
    "predictions that are not there": Wrong("evaluate", "--predictions {place}/p.json", ("p.json",)),
    "predictions of other pictures": Wrong("evaluate", "--predictions {place}/p.json --references {place}/c.json",
        ("image 1",), files={"p.json": [{"image_id": 2, "caption": "x"}], "c.json": COCO}),
    "caption nothing": Wrong("caption", "{model}", ("PATH",)),
    "caption a folder that is not there": Wrong("caption", "{model} {place}/photos", ("photos", "does not exist")),
    "caption an option without effect": Wrong("caption", "{model} {data} --top_p 0.9", ("--top_p", "--do_sample")),
    "caption no data set": Wrong("caption", "{model} --dataset_name {place}/none --output {place}/out", ("none",)),
    "caption with no model": Wrong("caption", "{place}/none {data}", ("none",)),
    "caption with an unknown option": Wrong("caption", "{model} {data} --beams 3", ("--beams",)),
    "caption with no beams": Wrong("caption", "{model} {data} --num_beams 0", ("num_beams",)),
    "caption on no device": Wrong("caption", "{model} {data} --device toaster", ("device", "toaster")),
    "caption in no precision": Wrong("caption", "{model} {data} --dtype float7", ("dtype", "float7")),
    "caption with no batch": Wrong("caption", "{model} {data} --batch_size 0", ("batch_size",)),
    "caption into a folder": Wrong("caption", "{model} {data} --output {place}", ("--output",)),
    "push nothing": Wrong("push", "{place} --repo_id lab/x", ("finished model",)),
    "push nowhere": Wrong("push", "{model}", ("--repo_id",)),
    "push to no name": Wrong("push", "{model} --repo_id a/b/c", ("--repo_id", "a/b/c")),
    "merge a plain model": Wrong("merge", "{model} {place}/out", ("adapter_config.json",)),
    "merge nothing": Wrong("merge", "{place}/none {place}/out", ("none",)),
    "merge into a full directory": Wrong("merge", "{model} {data}", ("not empty",)),
    "merge into a file": Wrong("merge", "{model} {data}/0000.png", ("not empty",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A captioner and three captioned pictures, with which all would be well."""
    folder = tmp_path_factory.mktemp("right")
    save_captioner(folder / "model")
    paths = draw_pictures(folder / "data", 3)
    lines = [json.dumps({"file_name": path.name, "text": f"a dot {path.stem}"}) for path in paths]
    (folder / "data/metadata.jsonl").write_text("\n".join(lines) + "\n")
    return {name: str(folder / name) for name in ("model", "data")}


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub, and a cache of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def prepare(wrong: Wrong, place: Path, names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Write what a case needs; gives its command line and what the message must say."""
    names = {**names, "place": str(place)}

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            for name, text in names.items():
                value = value.replace(f"{{{name}}}", text)
        return value

    for name, content in wrong.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path, names)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    if wrong.keys is not None:
        right = {"model_name_or_path": "tiny", "dataset_name": "{data}", "output_dir": "{place}/out", "use_cpu": True}
        keys = {key: fill(value) for key, value in {**right, "report_to": "none", "max_steps": 1, **wrong.keys}.items()}
        (place / "recipe.json").write_text(json.dumps(keys))
    return [fill(word) for word in wrong.words.split()], [fill(word) for word in wrong.says]


def contents(*folders: Path | str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_once_and_nothing_is_written(
    name: str,
    names: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong = CASES[name]
    words, says = prepare(wrong, tmp_path, names)
    before = contents(tmp_path, *names.values())
    main = import_module(f"blip_recipe.{wrong.command}").main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [wrong.command, *words])
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    seconds = time.monotonic() - start
    written, shown = capfd.readouterr()
    assert ended.value.code == 2, shown
    assert shown.count("error: ") == 1, shown
    message = shown[shown.index("error: ") :]
    assert all(word in message for word in says), message
    assert len(message) < 1500, message
    assert "Traceback" not in shown
    assert "hf_secret" not in shown
    assert written == ""
    assert contents(tmp_path, *names.values()) == before
    assert seconds < LIMIT


def run_counted(module: str, *words: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """A process, and the seconds of a processor that it took: other tests may be at work beside this one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_module(module, *words, env={"HF_HUB_OFFLINE": "1"}, cwd=cwd, cold=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def seconds_of_keys(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What transformers needs to say which keys training has."""
    return run_counted("blip_recipe.recipe.training_arguments", cwd=tmp_path_factory.mktemp("keys"))[1]


@pytest.mark.parametrize("name", [pytest.param("unknown key", marks=pytest.mark.long), "cut weights"])
def test_a_process_of_its_own_ends_so_too(
    name: str, names: dict[str, str], seconds_of_keys: float, tmp_path: Path
) -> None:
    words, says = prepare(CASES[name], tmp_path, names)
    done, seconds = run_counted(f"blip_recipe.{CASES[name].command}", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    assert all(word in message for word in says)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    # Most of it is imports; how long they take is the machine's affair.
    assert seconds < 2 * seconds_of_keys


def test_a_byte_order_mark_is_no_fault(
    names: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(recipe(""), tmp_path, names)
    path = tmp_path / "recipe.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    import_module("blip_recipe.finetune").main([str(path), "--dry_run", "true"])
    assert "3 images" in capsys.readouterr().out
