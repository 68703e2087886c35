"""Scores by models that look at the pictures: CLIPScore, matching probability and self-retrieval."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import CAPTIONS, draw_pictures, save_captioner
from clips import PlainClip, plain_clip_scores, save_clip
from PIL import Image
from retrievers import build_retriever, stock_copy
from transformers import BlipForImageTextRetrieval, BlipProcessor

from blip_recipe import ClipScorer, MatcherScorer, score_captions
from blip_recipe.errors import RecipeError
from blip_recipe.metrics import CaptionScorer
from blip_recipe.models.clip_scoring import clip_score, harmonic_mean
from blip_recipe.models.feature_cache import FeatureCache, picture_key

CLIP_METRICS = ["clip_score", "ref_clip_score", "self_retrieval"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock matcher."""
    folder = tmp_path_factory.mktemp("matcher")
    model, processor = build_retriever()
    stock_copy(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Twelve pictures by id, from files, as bytes and opened."""
    paths = draw_pictures(tmp_path_factory.mktemp("drawn"), 12, size=50)
    forms: list[Any] = [str, Path.read_bytes, lambda path: {"bytes": None, "path": str(path)}, Image.open]
    return {number: forms[number % 4](path) for number, path in enumerate(paths)}


CAPTIONED: dict[Any, str] = {number: f"{CAPTIONS[number % 4]} {number}" for number in range(12)}
REFERENCES: dict[Any, list[str]] = {
    number: [CAPTIONS[(number + 1) % 4], CAPTIONS[number % 4]][: 1 + number % 2] for number in range(12)
}


def test_clip_scores_of_50_photographs_are_the_authors(shared: Path, clip: Path) -> None:
    folder = shared / "data" / "photos" / "train"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()][:50]
    files = {row["image_id"]: folder / row["file_name"] for row in rows}
    captions = {row["image_id"]: row["captions"][0] for row in rows}
    references = {row["image_id"]: row["captions"][1:] for row in rows}
    found = score_captions(
        captions, references, CLIP_METRICS, images=files, scorers=[ClipScorer.load(str(clip), device="cpu")]
    )
    plain = PlainClip(clip)
    images, texts = [plain.image(path) for path in files.values()], [plain.text(each) for each in captions.values()]
    known = [[plain.text(text) for text in own] for own in references.values()]
    pairs = [plain_clip_scores(*each) for each in zip(images, texts, known, strict=True)]
    expected = dict(zip(captions, pairs, strict=True))
    differences = [
        abs(found.per_image[each][name] - pair[place])
        for each, pair in expected.items()
        for place, name in enumerate(("clip_score", "ref_clip_score"))
    ]
    print(f"largest difference {max(differences):.1e}; {sum(a == 0 for a, _ in pairs)} of 50 are 0")
    assert max(differences) < 1e-6
    assert found.corpus["clip_score"] == pytest.approx(np.mean([pair[0] for pair in pairs]), abs=1e-6)
    assert found.corpus["ref_clip_score"] == pytest.approx(np.mean([pair[1] for pair in pairs]), abs=1e-6)
    assert len({round(pair[0], 3) for pair in pairs}) > 20
    ranks = [
        sum(float(text @ other) >= float(text @ own) for other in images)
        for text, own in zip(texts, images, strict=True)
    ]
    for rank in (1, 5, 10):
        assert found.corpus[f"self_recall_{rank}"] == np.mean([each <= rank for each in ranks])
    assert any(len(f"A photo depicts {each}") > 90 for each in captions.values()), "no text was cut"


AUTHORS = {
    11: ([21, 31], 0.0, 0.25327131, 0.0),
    2: ([2], 2.5, 1.0, 1.42857146),
    13: ([15, 90, 33], 0.04697382, 0.08081201, 0.05941267),
    25: ([25, 5], 0.0, 1.0, 0.0),
    36: ([66], 0.60105646, -0.18484099, -0.53385746),
    8: ([99], 2.5, -0.02238143, -0.04516722),
}
"""References, CLIPScore, highest cosine and RefCLIPScore of captions by `clipscore.py` of jmhessel/clipscore (d200b56).

Captions and references are the numbers of the features that they have; the pictures have the features of `IMAGES`.
"""
IMAGES = {11: 1, 2: 2, 13: 3, 25: 5, 36: 6, 8: 8}


def test_scores_of_given_features_are_those_of_the_authors_code() -> None:
    def feature(number: int) -> torch.Tensor:
        values = torch.tensor([math.sin(number * (place + 1) + place) for place in range(8)])
        return values / values.norm()

    for caption, (references, clip_s, cosine, ref_clip_s) in AUTHORS.items():
        found = clip_score(feature(IMAGES[caption]), feature(caption))
        assert found.item() == pytest.approx(clip_s, abs=1e-6)
        closest = torch.stack([feature(caption) @ feature(each) for each in references]).max()
        assert closest.item() == pytest.approx(cosine, abs=1e-6)
        # The paper's formula has no cosine below 0; the authors' code keeps it (section 3).
        expected = ref_clip_s if cosine >= 0 else 0.0
        assert harmonic_mean(found, closest.clamp(min=0)).item() == pytest.approx(expected, abs=1e-6)


def test_scores_below_zero_are_zero() -> None:
    image = torch.tensor([1.0, 0.0])
    assert clip_score(image, torch.tensor([[-1.0, 0.0], [0.6, 0.8]])).tolist() == [0.0, 1.5]
    assert harmonic_mean(torch.tensor([0.0, 1.5]), torch.tensor([0.0, 0.5])).tolist() == [0.0, 0.75]


def test_a_split_is_encoded_once_and_keeps_its_scores_in_groups(clip: Path, drawn: dict[Any, Any]) -> None:
    scorer = ClipScorer.load(str(clip), device="cpu")
    seen: list[int] = []
    scorer.model.vision_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["pixel_values"])), with_kwargs=True
    )
    groups = {number: "ab"[number % 2] for number in drawn}
    with CaptionScorer(CLIP_METRICS, scorers=[scorer]) as whole:
        first = whole.score(CAPTIONED, REFERENCES, groups=groups, images=drawn)
        again = whole.score(CAPTIONED, REFERENCES, groups=groups, images=drawn)
        half = {number: CAPTIONED[number] for number in drawn if number % 2}
        alone = whole.score(half, {number: REFERENCES[number] for number in half}, images=drawn)
    assert sum(seen) == 12
    assert again == first
    assert {name: first.corpus[f"{name}_b"] for name in alone.corpus} == pytest.approx(alone.corpus)
    assert alone.corpus["self_recall_10"] == 1.0 > first.corpus["self_recall_1"]
    assert (
        first.per_image[0].keys() == alone.corpus.keys() == {name for each in alone.statistics for name in each.names}
    )


def test_equal_pictures_have_equal_keys_and_old_features_are_dropped(tmp_path: Path) -> None:
    first, second = draw_pictures(tmp_path, 2)
    assert picture_key(first.read_bytes()) == picture_key({"bytes": first.read_bytes(), "path": "other.png"})
    assert picture_key(first.read_bytes()) != picture_key(second.read_bytes())
    assert picture_key(Image.open(first)) == picture_key(np.asarray(Image.open(first)))
    before = picture_key(str(first))
    first.write_bytes(second.read_bytes())
    assert picture_key(str(first)) != before
    encoded: list[list[int]] = []

    def encode(numbers: list[int]) -> torch.Tensor:
        encoded.append(numbers)
        return torch.tensor([[float(number)] for number in numbers])

    cache = FeatureCache(limit=2)
    assert cache.look_up(["a", "b", "a"], encode).flatten().tolist() == [2.0, 1.0, 2.0]
    cache.look_up(["a", "c"], encode)
    cache.look_up(["a"], encode)
    cache.look_up(["b"], encode)
    assert encoded == [[2, 1], [1], [0]]


def test_the_matching_probability_is_that_of_the_stock_class(matcher: Path, drawn: dict[Any, Any]) -> None:
    scorer = MatcherScorer.load(str(matcher), device="cpu")
    scorer.batch_size = 5
    found = score_captions(CAPTIONED, REFERENCES, ["itm_score", "self_retrieval"], images=drawn, scorers=[scorer])
    model: Any = BlipForImageTextRetrieval.from_pretrained(matcher)
    processor: Any = BlipProcessor.from_pretrained(matcher)
    cosines = torch.zeros(12, 12)
    for number, caption in CAPTIONED.items():
        texts = processor.tokenizer([caption], return_tensors="pt")
        for other in range(12):
            picture = drawn[other]["path"] if isinstance(drawn[other], dict) else drawn[other]
            if isinstance(picture, bytes):
                (matcher / "picture.png").write_bytes(picture)
                picture = matcher / "picture.png"
            opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
            pixels = processor.image_processor(opened.convert("RGB"), return_tensors="pt").pixel_values
            inputs = {"pixel_values": pixels, "attention_mask": texts.attention_mask, "return_dict": True}
            with torch.no_grad():
                cosines[number, other] = model(**inputs, input_ids=texts.input_ids, use_itm_head=False).itm_score
                if other == number:
                    ids = texts.input_ids.clone()
                    ids[:, 0] = model.config.text_config.bos_token_id + 1  # [ENC]
                    logits = model(**inputs, input_ids=ids).itm_score
        assert found.per_image[number]["itm_score"] == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)
    ranks = (cosines >= cosines.diagonal()[:, None]).sum(1)
    assert found.corpus["self_recall_5"] == (ranks <= 5).double().mean().item()
    rated = scorer.rate([drawn[0], drawn[1]], [[CAPTIONED[0], "a dog"], [CAPTIONED[1], "two cats"]])
    assert [each[0] for each in rated] == pytest.approx([found.per_image[each]["itm_score"] for each in (0, 1)])


def test_a_missing_scorer_picture_or_wrong_model_is_an_error(
    clip: Path, matcher: Path, drawn: dict[Any, Any], tmp_path: Path
) -> None:
    for name in ("clip_score", "itm_score", "self_retrieval", "chair"):
        with pytest.raises(RecipeError, match=f"metrics names '{name}', but no scorer computes it: .*scorers="):
            CaptionScorer([name])
    scorers = [ClipScorer.load(str(clip), device="cpu")]
    with pytest.raises(
        RecipeError, match=r"'clip_score', which looks at the pictures, but there are none: pass `images`"
    ):
        score_captions(CAPTIONED, REFERENCES, ["clip_score"], scorers=scorers)
    some = {number: drawn[number] for number in drawn if number != 3}
    with pytest.raises(RecipeError, match="there is no picture of image 3: expected one for each"):
        score_captions(CAPTIONED, REFERENCES, ["clip_score"], scorers=scorers, images=some)
    with pytest.raises(RecipeError, match="a model of type 'blip': expected a CLIP"):
        ClipScorer.load(str(matcher))
    with pytest.raises(RecipeError, match="a model of type 'clip': expected a BLIP retrieval model"):
        MatcherScorer.load(str(clip))
    with pytest.raises(RecipeError, match="expected a retrieval model"):
        MatcherScorer.load(str(save_captioner(tmp_path / "captioner")))
    with pytest.raises(RecipeError, match=r"The CLIP .*nowhere.* cannot be loaded"):
        ClipScorer.load(str(tmp_path / "nowhere"))
