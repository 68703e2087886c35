"""An adapter, on disk or on the Hub, becomes a plain model with a card, ready to be pushed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from captioners import save_adapter, save_captioner
from commands import run_checked
from hub_server import HubServer
from huggingface_hub import ModelCard

from blip_recipe.card.merged import CARRIED_FILES, drop_section
from blip_recipe.data.storage import read_json, write_json

GOLDEN = Path(__file__).parent / "card" / "golden"
BASE = "somebody/blip"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a LoRA run, with a card whose scores are those of its `all_results.json`."""
    folder = tmp_path_factory.mktemp("adapter")
    save_captioner(folder / "base")
    keys: dict[str, Any] = {"prompt": "a picture of ", "generation_max_length": 20, "generation_min_length": 5}
    names = {"hub_model_id": "lab/blip-coco", "hub_private_repo": True}
    output_dir = save_adapter(folder / "run", BASE, base_directory=folder / "base", **keys, **names)
    shutil.copyfile(GOLDEN / "card_lora.md", output_dir / "README.md")
    scores = {each.metric_type: each.metric_value for each in metadata_of(output_dir).eval_results}
    write_json(output_dir / "all_results.json", {f"test_{name}": value for name, value in scores.items()})
    (output_dir / "samples").mkdir()
    for name in CARRIED_FILES[1:]:
        (output_dir / name).write_bytes(name.encode())
    return output_dir


def metadata_of(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md").data


def test_a_merged_model_has_a_card_with_the_scores_and_pictures_of_an_adapter_on_the_hub(
    adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    with HubServer() as hub:
        hub.publish_model(BASE, adapter.parent / "base")
        hub.publish_model("lab/blip-coco", adapter)
        run_checked("blip_recipe.merge", "lab/blip-coco", out, env=hub.environment())
        for name in CARRIED_FILES:
            assert (out / name).read_bytes() == (adapter / name).read_bytes()
        assert read_json(out / "recipe.json")["merge_adapter"]
    data, text = metadata_of(out), (out / "README.md").read_text(encoding="utf-8")
    assert (data.library_name, data.base_model) == ("transformers", BASE)
    assert data.to_dict()["base_model_relation"] == "finetune"
    results = json.loads((adapter / "all_results.json").read_text())
    assert {f"test_{each.metric_type}": each.metric_value for each in data.eval_results} == results
    assert data.model_name == "ORG/NAME"
    assert "was not measured again" in text
    assert 'model="ORG/NAME"' in text
    assert 'model="lab/blip-coco"' not in text


def test_a_merged_model_is_pushed_as_private_as_its_adapter_was(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with HubServer() as hub:
        hub.publish_model(BASE, adapter.parent / "base")
        run_checked("blip_recipe.merge", adapter, out, env=hub.environment())
        run_checked("blip_recipe.push", out, "--repo_id", "lab/merged", env=hub.environment())
        published = hub.files("lab/merged")
        assert hub.repositories["model", "lab/merged"].private
    assert {"model.safetensors", "README.md", "recipe.json", *CARRIED_FILES} <= published.keys()
    card = published["README.md"].decode()
    assert card == (out / "README.md").read_text(encoding="utf-8")
    assert 'model="lab/merged"' in card
    assert metadata_of(out).model_name == "lab/merged"


def test_only_headings_outside_of_code_begin_a_section() -> None:
    card = "# Title\n\n## Use\n\n```bash\n## no heading\n```\n\n## Scores\n\n```\n## none\n```\n\n## Use\nagain\n"
    assert drop_section(card, "Use") == "## Scores\n\n```\n## none\n```"
    assert drop_section("no heading", "Use") == ""
