"""Scores by pictures in training, in `evaluate`, and as rewards of self-critical training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from captioners import CAPTIONS, draw_pictures, save_captioner
from clips import save_clip
from datasets import load_dataset
from retrievers import build_retriever

from blip_recipe import (
    CaptionTrainer,
    CaptionTrainingArguments,
    ClipScorer,
    Diversity,
    MatcherScorer,
    ScstTrainer,
    ScstTrainingArguments,
    score_captions,
)
from blip_recipe.captioning.arguments import CaptionArguments, ScstArguments
from blip_recipe.card.gathering import score_facts
from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import main as evaluate
from blip_recipe.models.processors import save_processor
from blip_recipe.training.score_models import score_model_bytes

METRICS = ["clip_score", "ref_clip_score", "itm_score", "self_retrieval", "diversity"]
QUICK: dict[str, Any] = {
    "generation_num_beams": 1,
    "generation_max_length": 8,
    "augmentation": "none",
    "report_to": "none",
    "use_cpu": True,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "bf16": False,
}


class Places(NamedTuple):
    """A captioner, its pictures, and the models that score captions."""

    model: Path
    pictures: Path
    clip: Path
    matcher: Path

    @property
    def keys(self) -> dict[str, Any]:
        return {"clip_model_name_or_path": str(self.clip), "itm_model_name_or_path": str(self.matcher)}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("places")
    for split, count in {"train": 8, "validation": 6}.items():
        paths = draw_pictures(folder / "pictures" / split, count)
        lines = [
            {
                "file_name": path.name,
                "image_id": 100 + number,
                "group": "ab"[number % 2],
                "captions": [CAPTIONS[number % 4], CAPTIONS[(number + 1) % 4]],
            }
            for number, path in enumerate(paths)
        ]
        (folder / "pictures" / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    matcher, processor = build_retriever()
    matcher.save_pretrained(folder / "matcher")
    save_processor(processor, folder / "matcher")
    return Places(save_captioner(folder / "model"), folder / "pictures", save_clip(folder / "clip"), folder / "matcher")


def test_a_trainer_scores_by_the_pictures_of_its_split(places: Places, tmp_path: Path) -> None:
    photos = load_dataset("imagefolder", data_dir=str(places.pictures))
    args = CaptionTrainingArguments(str(tmp_path), metrics=METRICS, **QUICK, **places.keys)
    trainer = CaptionTrainer(str(places.model), args, photos["train"], photos["validation"])
    found = trainer.evaluate()
    captions: dict[Any, str] = {line["image_id"]: line["caption"] for line in trainer.predictions}
    references: dict[Any, list[str]] = {line["image_id"]: line["references"] for line in trainer.predictions}
    images: dict[Any, Path] = {100 + number: places.pictures / "validation" / f"{number:04}.png" for number in range(6)}
    scorers: list[Any] = [
        ClipScorer.load(str(places.clip), device="cpu"),
        MatcherScorer.load(str(places.matcher), device="cpu"),
        Diversity([caption for own in photos["train"]["captions"] for caption in own]),
    ]
    expected = score_captions(captions, references, METRICS, images=images, scorers=scorers)
    assert {f"eval_{name}": value for name, value in expected.corpus.items()}.items() <= found.items()
    assert trainer.predictions[0]["scores"] == pytest.approx(expected.per_image[100])
    assert {"eval_novel", "eval_self_recall_10", "eval_vocabulary"} <= found.keys()
    assert args.score_settings() == {"clip_model_name_or_path": "clip", "itm_model_name_or_path": "matcher"}
    facts = score_facts({name.replace("eval_", "test_"): value for name, value in found.items()}, "test")
    assert [each.name for each in facts][-2:] == ["novel", "loss"]
    assert facts[0].label == "CLIPScore"
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| CLIPScore |" in card
    assert "- CLIP of scores: `clip`." in card
    assert "- Matcher of scores: `matcher`." in card


# Rewards


def reward_trainer(places: Places, folder: Path, **keys: Any) -> ScstTrainer:
    photos = load_dataset("imagefolder", data_dir=str(places.pictures))
    args = ScstTrainingArguments(str(folder), metrics=["bleu"], **{**QUICK, **places.keys, **keys})
    return ScstTrainer(str(places.model), args, photos["train"].remove_columns("group"))


@pytest.mark.parametrize(("key", "metric"), [("clip_reward_weight", "clip_score"), ("itm_reward_weight", "itm_score")])
def test_a_reward_is_the_score_of_the_caption_and_training_raises_it(
    places: Places, tmp_path: Path, key: str, metric: str
) -> None:
    keys: dict[str, Any] = {
        **{"cider_reward_weight": 0.0, key: 2.0, "max_steps": 14, "per_device_train_batch_size": 8},
        **{"num_generations": 8, "learning_rate": 3e-3, "logging_steps": 1, "lr_scheduler_type": "constant"},
    }
    trainer = reward_trainer(places, tmp_path, **keys)
    kept: list[Any] = []
    score = trainer._score_captions

    def keep(rows: list[int], token_ids: torch.Tensor) -> Any:
        kept.append((rows, *score(rows, token_ids)))
        return kept[-1][1:]

    trainer._score_captions = keep  # type: ignore[method-assign]
    trainer.train()
    rows, captions, rewards = kept[0]
    scorer = trainer.score_models.clip if metric == "clip_score" else trainer.score_models.matcher
    assert scorer is not None
    pairs: dict[Any, int] = {8 * number + sample: row for number, row in enumerate(rows) for sample in range(8)}
    images: dict[Any, Path] = {pair: places.pictures / "train" / f"{row:04}.png" for pair, row in pairs.items()}
    texts: dict[Any, str] = {pair: captions[pair] for pair in pairs}
    scores = score_captions(texts, {pair: ["a"] for pair in pairs}, [metric], images=images, scorers=[scorer])
    expected = [2 * scores.per_image[pair][metric] for pair in pairs]
    assert rewards.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"{metric}: reward {sum(logged[:3]) / 3:.4f} to {sum(logged[-3:]) / 3:.4f}")
    assert sum(logged[-3:]) > sum(logged[:3]) + 3 * 0.02
    label = {"clip_score": "2 × CLIPScore", "itm_score": "2 × matching probability"}[metric]
    assert trainer.describe_settings(trainer.args, 8, 2)["reward"].startswith(label)
    frozen: Any = trainer.score_models.clip.model if trainer.score_models.clip else scorer.matcher.model
    assert not any(weight.requires_grad for weight in frozen.parameters())


def test_the_memory_estimate_counts_the_models_of_scores(places: Places) -> None:
    both = ScstArguments(metrics=["bleu"], clip_reward_weight=1.0, itm_reward_weight=1.0, **places.keys)
    sizes = [
        sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
        for model in (
            ClipScorer.load(str(places.clip), device="cpu").model,
            MatcherScorer.load(str(places.matcher), device="cpu").matcher.model,
        )
    ]
    assert score_model_bytes(both) == sum(sizes) - 4  # the temperature of ITC is not among the stock weights
    assert score_model_bytes(CaptionArguments(metrics=["clip_score"], **places.keys)) == sizes[0]
    assert score_model_bytes(CaptionArguments(metrics=["cider"])) == 0


# Arguments


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metrics": ["itm_score"]}, "itm_score needs a BLIP matcher, but itm_model_name_or_path is missing"),
        ({"metrics": ["self_retrieval"], "self_retrieval_by": "itc"}, "self_retrieval_by 'itc' needs a BLIP matcher"),
        ({"metrics": ["chair"]}, "metrics names 'chair', but chair_instances is missing"),
        ({"metrics": ["chair"], "chair_instances": ["a.json"]}, "metrics names 'chair', but chair_synonyms is missing"),
        ({"metrics": ["chair"], "chair_instances": "none.json"}, "chair_instances is 'none.json': expected a list"),
    ],
)
def test_metrics_without_what_they_need_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CaptionArguments(**keys)


def test_a_reward_without_its_matcher_is_refused() -> None:
    with pytest.raises(RecipeError, match="itm_reward_weight needs a BLIP matcher"):
        ScstArguments(itm_reward_weight=1.0)
    with pytest.raises(RecipeError, match="clip_reward_weight, itm_reward_weight are all 0"):
        ScstArguments(cider_reward_weight=0.0)


def test_fewer_hallucinated_objects_are_better(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chair = {"chair_instances": [str(tmp_path / "file")], "chair_synonyms": str(tmp_path / "file")}
    common: dict[str, Any] = {"metrics": ["chair", "bleu"], **chair, **QUICK}
    best = CaptionTrainingArguments(str(tmp_path), metric_for_best_model="eval_chair_i", **common)
    assert best.greater_is_better is False
    best.check_best_model()
    mixed = CaptionTrainingArguments(str(tmp_path), metric_for_best_model="chair_i+bleu_4", **common)
    with pytest.raises(RecipeError, match="chair_i is better when it is lower, and the others when they are higher"):
        mixed.check_best_model()
    assert CaptionTrainingArguments(str(tmp_path), metric_for_best_model="bleu_4", **common).greater_is_better


# The command


def evaluated(folder: Path, *words: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    evaluate([*map(str, [*words, "--output_dir", folder, "--dataloader_num_workers", "0", "--use_cpu", "true"])])
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "all_results.json").read_text()), list(map(json.loads, lines))


def test_the_command_scores_a_model_and_a_file_alike(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = ["--metrics", *METRICS, "--clip_model_name_or_path", places.clip, "--itm_model_name_or_path"]
    scores += [places.matcher, "--self_retrieval_by", "itc"]
    data = ["--dataset_name", places.pictures, "--eval_split", "validation", "--image_id_column", "image_id"]
    by_model, lines = evaluated(tmp_path / "model", "--model", places.model, *data, *scores, "--group_column", "group")
    assert "clip_score_a" in capsys.readouterr().out
    assert "eval_novel" not in by_model
    named = tmp_path / "references.json"
    images = [{"id": line["image_id"], "file_name": f"{line['image_id'] - 100:04}.png"} for line in lines]
    texts = [{"image_id": line["image_id"], "caption": text} for line in lines for text in line["references"]]
    named.write_text(json.dumps({"images": images, "annotations": texts}))
    predictions = tmp_path / "model" / "predictions.jsonl"
    file = ["--predictions", predictions, "--references", named]
    by_file, rows = evaluated(tmp_path / "file", *file, *scores, "--image_root", places.pictures / "validation")
    assert by_file == pytest.approx({name: by_model[name] for name in by_file}, abs=1e-5)
    assert rows[0]["scores"] == pytest.approx(lines[0]["scores"], abs=1e-5)
    written = tmp_path / "captions.jsonl"  # as `caption` writes it, read where it was written
    pictures = [str(places.pictures / "validation" / image["file_name"]) for image in images]
    captions = [{"image": path, "caption": line["caption"]} for path, line in zip(pictures, lines, strict=True)]
    written.write_text("\n".join(map(json.dumps, captions)))
    by_path, _ = evaluated(tmp_path / "path", "--predictions", written, "--references", named, *scores)
    assert by_path == pytest.approx(by_file)
    with pytest.raises(RecipeError, match=r"no picture of 6 images .*: expected .*0000.png. Set image_root to the"):
        evaluated(tmp_path / "none", *file, *scores, "--image_root", tmp_path)
    with pytest.raises(RecipeError, match=r"do not name the picture of 6 images .*: expected file_name"):
        evaluated(tmp_path / "none", "--predictions", predictions, *scores)
    assert not (tmp_path / "none").exists()


def test_the_command_names_the_key_of_a_wrong_model(places: Places, tmp_path: Path) -> None:
    data = ["--model", places.model, "--dataset_name", places.pictures, "--eval_split", "validation", "--metrics"]
    with pytest.raises(RecipeError, match=r"^itm_model_name_or_path is .*, a BlipForConditionalGeneration: expected a"):
        evaluated(tmp_path / "out", *data, "itm_score", "--itm_model_name_or_path", places.model)
    with pytest.raises(RecipeError, match=r"^clip_model_name_or_path is .*, a model of type 'blip': expected a CLIP"):
        evaluated(tmp_path / "out", *data, "clip_score", "--clip_model_name_or_path", places.model)
    chair = ["chair", "--chair_instances", places.pictures, "--chair_synonyms", places.pictures]
    with pytest.raises(
        RecipeError, match=r"pictures cannot be read as instances \(IsADirectoryError.*: expected COCO's"
    ):
        evaluated(tmp_path / "out", *data, *chair)
    with pytest.raises(RecipeError, match=r"clip_model_name_or_path is .* so that it has no effect. Add clip_score"):
        evaluated(tmp_path / "out", *data, "bleu", "--clip_model_name_or_path", places.clip)
    assert not (tmp_path / "out").exists()
