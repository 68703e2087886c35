"""Scores of texts in scripts that write no spaces between words."""

from __future__ import annotations

import logging
import math

import pytest

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.characters import cut_for_scoring
from blip_recipe.metrics.scorer import CaptionScorer, score_captions
from blip_recipe.metrics.scores import ImageId


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "Chinese": ("红色的圆形。", "红 色 的 圆 形"),
        "Chinese and English": ("一辆 SUV，停在路边", "一 辆 SUV 停 在 路 边"),
        "Japanese": ("赤い「ねこ」が２匹！", "赤 い ね こ が ２ 匹"),
        "a kana with its mark": ("か\u3099く", "か\u3099 く"),
        "Thai, vowels and tones with their letter": ("ที่นี่", "ที่ นี่"),
        "Korean, which has spaces": ("빨간 고양이", "빨간 고양이"),
        "Vietnamese": ("một hình tròn, màu đỏ", "một hình tròn, màu đỏ"),
        "English": ("a dog’s “bone”, isn't it?", "a dog’s “bone”, isn't it?"),
    }.values(),
)
def test_characters_of_scripts_without_spaces_become_words(text: str, words: str) -> None:
    assert cut_for_scoring(text) == words


def test_bleu_of_characters_is_that_counted_by_hand() -> None:
    """Of the caption's 4 characters and 3 pairs, the reference of 5 characters has 4 and 2; no triple agrees."""
    scores = score_captions({1: "红色圆形"}, {1: ["红色的圆形。"]}, ["bleu"], tokenizer="char").corpus
    brevity = math.exp(1 - 5 / 4)
    assert scores["bleu_1"] == pytest.approx(brevity)
    assert scores["bleu_2"] == pytest.approx(brevity * math.sqrt(2 / 3))
    assert scores["bleu_3"] == pytest.approx(0, abs=1e-3)


def test_cider_of_characters_is_that_counted_by_hand() -> None:
    """With 2 characters, 1-grams and 2-grams count for a quarter each: 10 * (1 + 1) / 4 and 10 * (1/2 + 0) / 4."""
    captions: dict[ImageId, str] = {1: "红圆", 2: "蓝圆"}
    references: dict[ImageId, list[str]] = {1: ["红圆"], 2: ["蓝方"]}
    scores = score_captions(captions, references, ["cider", "exact_match"], tokenizer="char")
    assert [scores.per_image[image]["cider"] for image in (1, 2)] == pytest.approx([5.0, 1.25])
    assert scores.corpus == pytest.approx({"cider": 3.125, "exact_match": 0.5})


def test_every_metric_takes_characters() -> None:
    """Also METEOR, and the tokenizer that works without Java, give the same captions full marks."""
    captions: dict[ImageId, str] = {1: "有一个红色的圆形", 2: "ที่นี่มีวงกลมสีแดง"}
    references: dict[ImageId, list[str]] = {image: [caption] for image, caption in captions.items()}
    scores = score_captions(captions, references, ["bleu", "rouge_l", "meteor", "exact_match"], tokenizer="char").corpus
    assert {name: scores[name] for name in ("bleu_4", "rouge_l", "meteor", "exact_match")} == pytest.approx(
        {"bleu_4": 1.0, "rouge_l": 1.0, "meteor": 1.0, "exact_match": 1.0}, abs=1e-3
    )


def test_words_of_phrases_without_spaces_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with CaptionScorer(["bleu"]) as scorer, caplog.at_level(logging.WARNING):
        for number in range(2):
            scorer.score({1: "红色圆形"}, {1: [f"红色的圆形{number}"]})
    warned = [record.getMessage() for record in caplog.records if "score_tokenizer" in record.getMessage()]
    assert len(warned) == 1
    assert "100% of the references" in warned[0]
    assert "红色的圆形" in warned[0]
    with CaptionScorer(["bleu"], tokenizer="char") as scorer:
        caplog.clear()
        scorer.score({1: "红色圆形"}, {1: ["红色的圆形"]})
        assert not caplog.records


def test_english_scores_do_not_depend_on_the_tokenizer() -> None:
    captions: dict[ImageId, str] = {1: "a dog’s bone, isn't it?"}
    references: dict[ImageId, list[str]] = {1: ["the dog's bone", "a bone."]}
    metrics = ["bleu", "cider", "rouge_l"]
    assert score_captions(captions, references, metrics, tokenizer="char") == score_captions(
        captions, references, metrics
    )


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'words': expected one of ptb, char"):
        CaptionScorer(["bleu"], tokenizer="words")  # type: ignore[arg-type]
