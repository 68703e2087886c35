"""A mixture of data sets: what it reads, how often its rows are seen, and a run that resumes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from captioners import draw_pictures
from commands import run_checked
from datasets import Dataset

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.load import load_splits
from blip_recipe.data.mixture import Mixture, MixtureSampler, Part, read_mixture
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main


def mix(sizes: list[int], weights: list[float]) -> Mixture:
    ids = [f"{number}:{row}" for number, size in enumerate(sizes) for row in range(size)]
    parts = [Part(f"part {number}", weight) for number, weight in enumerate(weights)]
    return Mixture(Dataset.from_dict({"image_id": ids}), parts)


def test_each_row_is_seen_as_often_as_its_weight_says() -> None:
    mixture = mix([10, 6, 4], [1.0, 0.5, 2.5])
    sampler = MixtureSampler(mixture, seed=7)
    assert len(sampler) == mixture.rows_per_epoch == 10 + 3 + 10
    counts: Counter[int] = Counter()
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(orders[-1]) == 23
        counts.update(orders[-1])
    assert [counts[row] for row in range(20)] == [4] * 10 + [2] * 6 + [10] * 4
    assert len({tuple(order) for order in orders}) == 4
    again = MixtureSampler(mix([10, 6, 4], [1.0, 0.5, 2.5]), seed=7)
    again.set_epoch(2)
    assert list(again) == orders[2]
    assert list(MixtureSampler(mixture, seed=8)) != orders[0]


def test_rows_that_were_dropped_belong_to_no_part() -> None:
    whole = mix([3, 3], [1.0, 1.0])
    kept = Mixture(whole.rows.select([0, 2, 4]), whole.parts)
    assert [own.tolist() for own in kept.members] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("me/web: 1", "is not JSON"),
        ("[1, 2]", "expected weights by data set"),
        ('{"me/web": 0}', "expected a number over 0"),
        ('{"me/web": {"weight": "much"}}', "expected a number over 0"),
        ('{"me/web": {"wieght": 2}}', "has the key 'wieght'"),
        ('{"me/web": {"train_splits": "a"}}', "Did you mean 'train_split'"),
    ],
)
def test_wrong_mixtures_are_explained(given: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_mixture(given)


def test_a_weight_that_leaves_no_row_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"0\.01 for 'part 1', which has 5 rows"):
        mix([10, 5], [1.0, 0.01])


@pytest.mark.parametrize("key", ["streaming", "max_train_samples", "validation_fraction"])
def test_keys_that_contradict_a_mixture_are_refused(key: str) -> None:
    other: Any = 0.5 if key == "validation_fraction" else 1
    with pytest.raises(RecipeError, match=f"dataset_mixture and {key}"):
        CaptionDataArguments(dataset_name="shapes", dataset_mixture={"shapes": 1.0}, **{key: other})


def save_photos(folder: Path, count: int) -> Path:
    paths = draw_pictures(folder, count)
    lines = [{"file_name": path.name, "text": f"a photo with number {number}"} for number, path in enumerate(paths)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_parts_pass_through_the_readers_of_their_sources(tmp_path: Path) -> None:
    mixture = {
        str(save_photos(tmp_path / "photos", 5)): 2.0,
        "scenes": {"weight": 0.5, "dataset_name": "shapes", "max_train_samples": 8, "caption_prefix": "drawn: "},
    }
    arguments = CaptionDataArguments(
        dataset_name="shapes", eval_split="validation", max_eval_samples=3, dataset_mixture=mixture
    )
    splits = load_splits(arguments)
    assert {role: len(rows) for role, rows in splits.items()} == {"train": 13, "eval": 3}
    found = Mixture(splits["train"], arguments.mixture)
    assert [len(own) for own in found.members] == [5, 8]
    assert found.rows_per_epoch == 14
    captions = splits["train"]["captions"]
    assert captions[0] == ["a photo with number 0"]
    assert all(caption.startswith("drawn: ") for row in captions[5:] for caption in row)
    assert "5 of photos, of which an epoch sees 10 (weight 2)" in found.describe()


def test_a_run_on_a_mixture_resumes_exactly_and_says_what_it_saw(tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 6)
    keys: dict[str, Any] = {
        "dataset_mixture": json.dumps({str(photos): 1.5, "shapes": {"weight": 0.5, "max_train_samples": 20}}),
        "max_eval_samples": 4,
        "num_train_epochs": 2,
        "eval_steps": 3,
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "metrics": "exact_match",
        "warmup_steps": 1,
        "dataloader_num_workers": 0,
        "save_total_limit": 9,
        "use_cpu": "true",
    }

    def finetune(name: str, **changes: object) -> Path:
        arguments = [f"--{key}={value}" for key, value in (keys | changes).items()]
        run_checked("blip_recipe.finetune", "recipes/shapes_tiny.json", *arguments, f"--output_dir={tmp_path / name}")
        return tmp_path / name

    whole = finetune("whole")
    state = json.loads((whole / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * 5  # 9 photos and 10 scenes an epoch
    resumed = finetune("resumed", resume_from_checkpoint=whole / "checkpoint-3")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    card = (whole / "README.md").read_text().replace("\\", "")
    assert "6 of photos, of which an epoch sees 9 (weight 1.5); 20 of shapes, of which an epoch sees 10" in card
    recorded = json.loads((whole / "recipe.json").read_text())["dataset_mixture"]
    assert recorded["shapes"] == {"weight": 0.5, "dataset_name": "shapes", "max_train_samples": 20}


def test_the_plan_counts_the_rows_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture = json.dumps({"shapes": {"weight": 0.5, "max_train_samples": 64}})
    main(["recipes/shapes_tiny.json", "--dry_run", "true", "--dataset_mixture", mixture, "--num_train_epochs", "2"])
    plan = capsys.readouterr().out
    assert "steps   2, each 32 images" in plan
    assert "64 of shapes, of which an epoch sees 32 (weight 0.5)" in plan


def test_other_tasks_have_no_mixture() -> None:
    with pytest.raises(RecipeError, match="dataset_mixture is given, but task is 'vqa'"):
        main(["recipes/shapes_vqa.json", "--dataset_mixture", '{"shapes": 1.0}'])
