"""From a bare folder of pictures with text files beside them, one command ends with a captioner and honest scores."""

from __future__ import annotations

import json
from pathlib import Path

from captioners import save_captioner
from layouts import LAYOUTS, make_records

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.images import read_content
from blip_recipe.data.load import load_splits
from blip_recipe.finetune import main as finetune


def test_a_folder_of_pictures_and_text_files_becomes_a_scored_captioner(tmp_path: Path) -> None:
    records = make_records(60, captions=1)
    LAYOUTS["text_file_beside_each_picture"](records, tmp_path / "pictures")
    keys = {
        "model_name_or_path": save_captioner(tmp_path / "model"),
        "dataset_name": tmp_path / "pictures",
        "output_dir": tmp_path / "run",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "metrics": "cider",
        "metric_for_best_model": "cider",
        "use_cpu": "true",
    }
    finetune(["recipes/my_pictures.json", *(word for key, value in keys.items() for word in (f"--{key}", str(value)))])
    data = CaptionDataArguments(str(tmp_path / "pictures"), validation_fraction=0.1, test_fraction=0.1)
    splits = load_splits(data)
    pictures = {role: {read_content(row["image"]) for row in rows} for role, rows in splits.items()}
    assert sum(map(len, pictures.values())) == 60
    assert set.union(*pictures.values()) == {each["content"] for each in records}
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    assert {"test_cider", "baseline_cider", "eval_cider"} <= results.keys()
    predictions = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [each["references"] for each in predictions] == list(splits["test"]["captions"])
    trained = json.loads((tmp_path / "run/trainer_state.json").read_text())
    assert trained["max_steps"] == -(-len(splits["train"]) // 16)
    card = (tmp_path / "run/README.md").read_text()
    assert "The images of 'test' are about 0.1 of the images of 'train'. A hash of each picture chose them" in card
    assert f"| test | `test` | {len(splits['test'])} |" in card
