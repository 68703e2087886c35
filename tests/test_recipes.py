"""Recipes of all tasks on stand-ins for the models and data that they name.

They run word for word, but for the number of epochs or steps. tests/test_finetune.py runs those of captioning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import save_captioner
from coco import BASE_MODEL, captions_of, picture, publish_coco, publish_flickr30k
from commands import run_checked
from hub_server import HubServer
from metrics_reference import pycocoevalcap_tokens
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from recipe_data import DOMAINS, QUESTIONS, publish_tiny, write_nocaps, write_vqav2
from retrievers import load_exactly, plain_features, plain_match
from safetensors.torch import load_file
from transformers import BlipForImageTextRetrieval
from web_data import read_judged, save_filter, web_rows, write_tars

from blip_recipe.data.pixels import normalize_pixels, read_resized
from blip_recipe.models.matching import tokenize_texts
from blip_recipe.models.processors import load_processor

TWO_EPOCHS = ["--num_train_epochs", "2"]
TRAINED, TESTED = 34, 6
"""Images of training, more than a batch, and of the test."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("published")
    texts = ["a picture of , .", *(caption for number in range(12) for caption in captions_of(number))]
    with HubServer() as server:
        publish_tiny(server, "captioning", BASE_MODEL, texts, folder / "captioner")
        publish_tiny(server, "retrieval", "Salesforce/blip-itm-base-coco", texts, folder / "matcher")
        publish_tiny(server, "vqa", "Salesforce/blip-vqa-base", [*texts, *QUESTIONS, "yes no 1"], folder / "vqa", 480)
        server.publish_model("Salesforce/blip-image-captioning-large", save_captioner(folder / "large"))
        server.publish_model("Salesforce/blip-itm-large-coco", save_filter(folder / "filter"))
        for part in ("coco", "flickr30k"):
            (folder / part).mkdir()
        publish_coco(server, folder / "coco", {"train": 28, "restval": TRAINED - 28, "val": 5, "test": TESTED})
        publish_flickr30k(server, folder / "flickr30k", {"train": TRAINED, "val": 5, "test": TESTED})
        yield server


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def plain_recalls(directory: Path, numbers: range) -> dict[str, float]:
    """Recalls of the pictures `numbers` and their captions, pair by pair with the stock class."""
    model, processor = load_exactly(BlipForImageTextRetrieval, directory), load_processor(str(directory))
    resized = read_resized([picture(number) for number in numbers], processor.image_processor)
    texts = [(row, text) for row, number in enumerate(numbers) for text in captions_of(number)]
    inputs = tokenize_texts(processor.tokenizer, [text for _, text in texts])
    inputs["pixel_values"] = normalize_pixels(resized, processor.image_processor)
    images, features, embeds = plain_features(model, inputs)
    enc_token_id = processor.tokenizer.convert_tokens_to_ids("[ENC]")
    pairs = list(zip(inputs["input_ids"], inputs["attention_mask"], strict=True))
    itm = torch.tensor([[plain_match(model, each, *pair, enc_token_id)[1].item() for pair in pairs] for each in embeds])
    scores = itm + images @ features.T
    owners = torch.tensor([row for row, _ in texts])
    own = owners == torch.arange(len(numbers))[:, None]
    found: dict[str, float] = {}
    for kind, table, mask in (("text", scores, own), ("image", scores.T, own.T)):
        best = table.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
        ranks = ((table >= best) & ~mask).sum(1)
        found |= {f"{kind}_recall_{rank}": (ranks < rank).double().mean().item() for rank in (1, 5, 10)}
    return found


@pytest.mark.parametrize("recipe", ["coco_retrieval", pytest.param("flickr30k_retrieval", marks=pytest.mark.long)])
def test_retrieval_is_trained_and_scored_as_the_stock_model_ranks(recipe: str, hub: HubServer, tmp_path: Path) -> None:
    run_checked("blip_recipe.finetune", f"recipes/{recipe}.json", *TWO_EPOCHS, cwd=tmp_path, env=hub.environment())
    output, name = tmp_path / "outputs" / recipe, f"tester/blip-{recipe.replace('_', '-')}"
    results = read_json(output / "all_results.json")
    assert read_json(output / "trainer_state.json")["global_step"] == 2  # of 34 images, each epoch leaves out two
    first = TRAINED + 5
    expected = plain_recalls(output, range(first, first + TESTED))
    assert 0 < expected["text_recall_1"] + expected["image_recall_1"] < 2
    assert {key: results[f"test_{key}"] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert results["test_recall_mean"] == pytest.approx(sum(expected.values()) / 6)
    ids = [1000 + number if recipe.startswith("coco") else str(number) for number in range(first, first + TESTED)]
    lines = read_lines(output / "predictions.jsonl")
    assert [line["image_id"] for line in lines] == ids
    assert len(hub.commits(name)) == 2
    assert hub.files(name)["model.safetensors"] == (output / "model.safetensors").read_bytes()


def official_accuracy(answer: str, given: list[str]) -> float:
    """VQA's accuracy of one answer: the mean over the sets of nine of the ten people's answers."""
    return sum(min(1.0, each.count(answer) / 3) for each in combinations(given, 9)) / 10


def test_vqav2_is_trained_and_scored_from_its_own_files(hub: HubServer, tmp_path: Path) -> None:
    write_vqav2(tmp_path / "data", "train2014", range(24))
    write_vqav2(tmp_path / "data", "val2014", range(24, 30))
    epochs = ["--num_train_epochs", "1"]
    run_checked("blip_recipe.finetune", "recipes/vqav2.json", *epochs, cwd=tmp_path, env=hub.environment())
    output = tmp_path / "outputs" / "vqav2"
    results, lines = read_json(output / "all_results.json"), read_lines(output / "predictions.jsonl")
    annotations = read_json(tmp_path / "data/vqav2/v2_mscoco_val2014_annotations.json")["annotations"]
    given = {each["question_id"]: [answer["answer"] for answer in each["answers"]] for each in annotations}
    accuracies = [official_accuracy(line["answer"], given[line["question_id"]]) for line in lines]
    assert {line["question_id"] for line in lines} == given.keys()
    assert {line["answer"] for line in lines} <= {"yes", "no", "1"}  # the answers of nine training questions or more
    assert results["eval_vqa_accuracy"] == pytest.approx(sum(accuracies) / len(given))
    assert read_json(output / "trainer_state.json")["global_step"] == 1  # 72 questions, 256 a step
    before, after = (load_file(path / "model.safetensors") for path in (published(hub, tmp_path), output))
    assert any(not torch.equal(weights, after[name]) for name, weights in before.items())
    assert read_json(output / "config.json")["vision_config"]["image_size"] == 480
    assert hub.files("tester/blip-vqav2")["model.safetensors"] == (output / "model.safetensors").read_bytes()


def published(hub: HubServer, folder: Path) -> Path:
    """The published base of answers, in a folder."""
    (folder / "base").mkdir()
    (folder / "base" / "model.safetensors").write_bytes(hub.files("Salesforce/blip-vqa-base")["model.safetensors"])
    return folder / "base"


def test_nocaps_is_scored_by_domain_as_the_coco_tools_score_each_domain_alone(hub: HubServer, tmp_path: Path) -> None:
    write_nocaps(tmp_path / "data" / "nocaps", 12)
    done = run_checked("blip_recipe.evaluate", "recipes/nocaps.json", cwd=tmp_path, env=hub.environment())
    results = read_json(tmp_path / "outputs/evaluate/all_results.json")
    lines = read_lines(tmp_path / "outputs/evaluate/predictions.jsonl")
    assert [line["group"] for line in lines] == [DOMAINS[number % 3] for number in range(12)]
    captions = pycocoevalcap_tokens({line["image_id"]: [line["caption"]] for line in lines})
    references = pycocoevalcap_tokens({line["image_id"]: line["references"] for line in lines})
    ciders = set()
    for domain, end in ((None, ""), *((domain, f"_{domain.replace('-', '_')}") for domain in DOMAINS)):
        part = [line["image_id"] for line in lines if domain in (None, line["group"])]
        pair = {each: references[each] for each in part}, {each: captions[each] for each in part}
        assert results[f"eval_cider{end}"] == pytest.approx(Cider().compute_score(*pair)[0], abs=1e-9)
        assert results[f"eval_rouge_l{end}"] == pytest.approx(Rouge().compute_score(*pair)[0], abs=1e-9)
        ciders.add(round(results[f"eval_cider{end}"], 6))
        assert {f"eval_bleu_4{end}", f"eval_meteor{end}"} <= results.keys()
        assert f"\ncider{end} " in done.stdout
    assert len(ciders) == 4
    assert min(ciders) > 0


def test_web_data_are_cleaned_and_then_trained_on(hub: HubServer, tmp_path: Path) -> None:
    rows = web_rows(9)
    write_tars(tmp_path / "web_shards", rows, 5)
    run_checked("blip_recipe.capfilt", "recipes/capfilt_web.json", cwd=tmp_path, env=hub.environment())
    web = tmp_path / "outputs" / "capfilt_web"
    judged = read_judged(web)
    assert [row["text"] for row in judged if row["kind"] == "web"] == [text for _, texts in rows for text in texts]
    assert sum(row["kind"] == "synthetic" for row in judged) == len(rows)
    kept = [row for row in judged if row["score"] >= 0.5]
    assert 0 < len(kept) < len(judged)
    totals = read_json(web / "all_results.json")
    assert totals["web_kept"] + totals["synthetic_kept"] == len(kept)
    steps = ["--max_steps", "2"]
    run_checked("blip_recipe.finetune", "recipes/capfilt_train.json", *steps, cwd=tmp_path, env=hub.environment())
    output = tmp_path / "outputs" / "capfilt_train"
    state = read_json(output / "trainer_state.json")
    assert state["global_step"] == 2
    images = len({(row["source_shard"], row["source_row"]) for row in kept})
    assert 2 * 64 > state["epoch"] * images > 0
    trained, base = load_file(output / "model.safetensors"), hub.files(BASE_MODEL)["model.safetensors"]
    (tmp_path / "base.safetensors").write_bytes(base)
    assert any(not torch.equal(trained[name], each) for name, each in load_file(tmp_path / "base.safetensors").items())
