"""Nothing that comes with a model, a data set or a recipe runs or breaks out, and no token is told; see SECURITY.md."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from captioners import draw_pictures, save_adapter, save_captioner
from cards import BASE, COCO, make_facts

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.card.facts import Source
from blip_recipe.card.rendering import render_card
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main as finetune
from blip_recipe.models.loading import load_finished, load_merged


class Bomb:
    """Whoever unpickles it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "run")


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there when foreign code was run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "witness"


def test_the_witness_is_one(witness: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists()


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner"))


def recipe_of(folder: Path, **keys: Any) -> str:
    draw_pictures(folder / "data", 2)
    lines = [json.dumps({"file_name": f"{number:04}.png", "text": "a dot"}) + "\n" for number in range(2)]
    (folder / "data/metadata.jsonl").write_text("".join(lines))
    right = {"dataset_name": str(folder / "data"), "output_dir": str(folder / "out"), "use_cpu": True, "max_steps": 1}
    (folder / "recipe.json").write_text(json.dumps({**right, "report_to": "none", **keys}))
    return str(folder / "recipe.json")


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_pickle_in_a_model_is_not_opened(kind: str, captioner: Path, witness: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if kind == "model":
        shutil.copytree(captioner, model)
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        weights = model / "pytorch_model.bin"
    else:
        save_adapter(model, captioner)
        (model / "adapter_model.safetensors").unlink()
        weights = model / "adapter_model.bin"
    for content in (pickle.dumps(Bomb(witness)), pickle.dumps(Bomb(witness), protocol=2)):
        weights.write_bytes(content)
        with pytest.raises(RecipeError):
            load_finished(str(model), BlipForCaptioning)
        with pytest.raises(RecipeError):
            load_finished(str(model), BlipForCaptioning, allow_pickle=True)  # tensors alone, even so
        with pytest.raises(RecipeError):
            finetune([recipe_of(tmp_path, model_name_or_path=str(model))])
    if kind == "adapter":
        with pytest.raises(RecipeError):
            load_merged(str(model), BlipForCaptioning)
    assert not witness.exists()


def test_a_pickle_beside_good_weights_is_not_opened(captioner: Path, witness: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(captioner, model)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (model / name).write_bytes(pickle.dumps(Bomb(witness)))
    load_finished(str(model), BlipForCaptioning)
    assert not witness.exists()


def test_code_beside_data_or_model_is_not_run(captioner: Path, witness: Path, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nPath({str(witness)!r}).write_text('run')\n"
    data, model = tmp_path / "set", tmp_path / "model"
    data.mkdir()
    for name in ("set.py", "__init__.py"):
        (data / name).write_text(code)
    with pytest.raises(RecipeError, match="script"):
        load_split(CaptionDataArguments(dataset_name=str(data)), "train")
    shutil.copytree(captioner, model)
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": own}))
    (model / "own.py").write_text(code)
    with pytest.raises(RecipeError, match="trust_remote_code"):
        finetune([recipe_of(tmp_path, model_name_or_path=str(model))])
    assert not witness.exists()


WILD = "x\n---\nlicense: mit\n---\n# {{ 7 * 7 }} <script>alert(1)</script> ![i](http://a/b.png) | `c` {% raw %}"


def metadata(card: str) -> Any:
    """The block at the top, as any reader of YAML finds it."""
    return yaml.safe_load(card[4 : card.index("\n---\n", 4)])


@pytest.mark.parametrize("what", ["data set", "base", "licence", "prompt", "configuration"])
def test_names_and_prompts_cannot_break_out_of_the_card(what: str, tmp_path: Path) -> None:
    place = tmp_path / WILD.replace("/", "")
    place.mkdir()
    changes: dict[str, Any] = {
        "data set": {"dataset": Source(str(place))},
        "base": {"base": Source(str(place))},
        "licence": {"base": Source(BASE.name, BASE.revision, {"license": WILD}), "dataset": COCO},
    }.get(what, {})
    words = {"prompt": ["--prompt", WILD], "configuration": ["--dataset_config_name", WILD]}.get(what, [])
    card = render_card(make_facts("coco_full", *words, **changes))
    usual = render_card(make_facts("coco_full"))
    assert metadata(card).keys() <= metadata(usual).keys() | {"license"}
    assert metadata(card).get("license") != "mit"
    outside_code = "".join(card.split("```")[::2])
    for mark in ("\n# {{", "\n---\nlicense", "# 49"):
        assert mark not in card.split("\n---\n", 1)[1]
    for mark in ("<script", "![i]("):
        for line in outside_code.splitlines():
            assert mark not in line or line.count("`") >= 2, line  # shown as code
