"""Grad-CAM of all kinds of models: equal to a plain computation with the stock classes, and on the named object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import draw_pictures, save_adapter, save_captioner
from PIL import Image
from retrievers import build_retriever
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessor,
)
from vqa_models import save_answerer

from benchmarks.explain import build, measure, train
from blip_recipe import Explanation, RecipeError, caption_pipeline, load_explainer
from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.models.attention import EAGER_CLASSES
from blip_recipe.models.processors import save_processor

CAPTION = "two green zoos"
"""The last word is not in the vocabulary: it is spelt `z ##o ##o ##s`."""
CAPTION_TOKENS = [[1], [2], [3, 4, 5, 6]]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures", 3)[2]


def save_retriever(directory: Path) -> Path:
    model, processor = build_retriever()
    model.save_pretrained(directory)
    save_processor(processor, directory)
    return directory


def read_pixels(directory: Path, picture: Path) -> torch.Tensor:
    return BlipImageProcessor.from_pretrained(directory)(Image.open(picture), return_tensors="pt").pixel_values


def plain_weights(score: torch.Tensor, maps: torch.Tensor) -> np.ndarray:
    """The positive gradient of a score times the map, averaged over heads, `(tokens, rows, columns)`; 2 x 2 patches."""
    maps.retain_grad()
    maps.grad = None
    score.backward(retain_graph=True)
    assert maps.grad is not None
    weighted = (maps.grad * (maps.grad > 0) * maps)[0].mean(0)
    return weighted[:, 1:].reshape(-1, 2, 2).detach().numpy()


def assert_equal_maps(found: Explanation, expected: list[np.ndarray]) -> None:
    plain = np.stack(expected)
    assert plain.max() > 0
    assert found.maps.shape == plain.shape == (len(found.words), 2, 2)
    assert found.maps.dtype == np.float32
    assert np.abs(found.maps - plain).max() <= 1e-5 * plain.max()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("prompt", ["", "a picture of "])
def test_a_caption_has_the_maps_of_a_plain_computation(tmp_path: Path, picture: Path, layer: int, prompt: str) -> None:
    directory = save_captioner(tmp_path / "model", prompt=prompt)
    explanation = load_explainer(directory, device="cpu")(picture, CAPTION, layer=layer)
    stock, tokenizer = BlipForConditionalGeneration.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(prompt + CAPTION, return_tensors="pt").input_ids
    ids[:, 0] = stock.config.text_config.bos_token_id
    embeds = stock.vision_model(read_pixels(directory, picture)).last_hidden_state
    output = stock.text_decoder(input_ids=ids, encoder_hidden_states=embeds, output_attentions=True)
    log_probs = output.logits.log_softmax(-1)[0]
    before = len(tokenizer(prompt).input_ids) - 2
    expected, scores = [], []
    for word in CAPTION_TOKENS:
        tokens = [before + token for token in word]
        score = sum(log_probs[token - 1, ids[0, token]] for token in tokens)
        weights = plain_weights(score, output.cross_attentions[layer])  # type: ignore[arg-type]
        expected.append(sum(weights[token - 1] for token in tokens))
        scores.append(score.item())
    assert explanation.words == ("two", "green", "zoos")
    assert explanation.scores == pytest.approx(scores, abs=1e-4)
    assert_equal_maps(explanation, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_question_and_its_answer_have_the_maps_of_a_plain_computation(
    tmp_path: Path, picture: Path, layer: int
) -> None:
    directory = save_answerer(tmp_path / "model")
    explain = load_explainer(directory, device="cpu")
    question = explain(picture, "Is there a dog", answer="a dark red", layer=layer)
    answer = explain(picture, "Is there a dog", answer="a dark red", layer=layer, over="answer")
    stock, tokenizer = BlipForQuestionAnswering.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("is there a dog", return_tensors="pt").input_ids
    ids[:, 0] = stock.config.text_config.bos_token_id + 1
    answer_ids = tokenizer("a dark red", return_tensors="pt").input_ids
    answer_ids[:, 0] = stock.config.text_config.bos_token_id
    embeds = stock.vision_model(read_pixels(directory, picture)).last_hidden_state
    encoded = stock.text_encoder(input_ids=ids, encoder_hidden_states=embeds, output_attentions=True)
    logits = stock.text_decoder(input_ids=answer_ids, encoder_hidden_states=encoded.last_hidden_state).logits
    log_probs = logits.log_softmax(-1)[0, :-1].gather(1, answer_ids[0, 1:, None])[:, 0]
    maps = encoded.cross_attentions[layer]
    whole = plain_weights(log_probs.sum(), maps)
    assert question.words == ("is", "there", "a", "dog")
    assert question.scores == pytest.approx([log_probs.sum().item()], abs=1e-4)
    assert_equal_maps(question, list(whole[1:-1]))
    assert answer.words == ("a", "dark", "red")
    assert_equal_maps(answer, [plain_weights(log_probs[token], maps).sum(0) for token in range(3)])


def test_a_match_has_the_maps_of_a_plain_computation(tmp_path: Path, picture: Path) -> None:
    directory = save_retriever(tmp_path / "model")
    explain = load_explainer(directory, device="cpu")
    explanation = explain(picture, "Two green, zoos!")
    stock, tokenizer = BlipForImageTextRetrieval.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("two green, zoos", return_tensors="pt").input_ids
    ids[:, 0] = stock.config.text_config.bos_token_id + 1
    embeds = stock.vision_model(read_pixels(directory, picture)).last_hidden_state
    encoded = stock.text_encoder(input_ids=ids, encoder_hidden_states=embeds, output_attentions=True)
    score = stock.itm_head(encoded.last_hidden_state[:, 0])[0, 1]
    weights = plain_weights(score, encoded.cross_attentions[0])
    assert explanation.layer == 0  # the last layer has no maps of words
    assert explanation.words == ("two", "green", ",", "zoos")
    assert explanation.scores == pytest.approx([score.item()], abs=1e-4)
    assert_equal_maps(explanation, [weights[1], weights[2], weights[3], weights[4:8].sum(0)])


def test_explaining_leaves_the_model_as_it_was(tmp_path: Path, picture: Path) -> None:
    explain = load_explainer(save_captioner(tmp_path / "model"), device="cpu")
    classes = [type(module) for module in explain.model.modules()]
    first = explain(picture)
    with torch.no_grad():
        again = explain(picture, first.text)
    assert [type(module) for module in explain.model.modules()] == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in explain.model.modules())
    assert all(weights.grad is None for weights in explain.model.parameters())
    assert np.array_equal(first.maps, again.maps)
    with torch.inference_mode():
        assert np.array_equal(explain(picture).maps, first.maps)


def test_maps_do_not_depend_on_the_fused_attention_or_on_frozen_weights(tmp_path: Path, picture: Path) -> None:
    explain = load_explainer(save_captioner(tmp_path / "model"), device="cpu")
    fused = explain(picture, CAPTION)
    for weights in explain.model.parameters():
        weights.requires_grad_(False)
    assert np.array_equal(explain(picture, CAPTION).maps, fused.maps)
    explain.model._switch_attention(EAGER_CLASSES)
    assert explain(picture, CAPTION).maps == pytest.approx(fused.maps, abs=1e-5 * float(fused.maps.max()))


def test_without_text_the_caption_that_the_model_writes_is_explained(tmp_path: Path, picture: Path) -> None:
    base = save_captioner(tmp_path / "base", prompt="a picture of ", generation_max_length=12)
    adapter = save_adapter(tmp_path / "adapter", base, prompt="a picture of ", generation_max_length=12)
    for directory in (base, adapter):
        written = caption_pipeline(directory, device="cpu")(str(picture))[0]["generated_text"]
        explanation = load_explainer(directory, device="cpu")(picture)
        assert explanation.text == written
        assert "".join(explanation.words) == written.replace(" ", "")


def test_the_default_layer_is_two_thirds_up(tmp_path: Path) -> None:
    explain: Any = load_explainer(save_captioner(tmp_path / "model"), device="cpu")
    match: Any = load_explainer(save_retriever(tmp_path / "matcher"), device="cpu")
    assert (explain.default_layer, match.default_layer) == (1, 0)
    for explainer in (explain, match):
        layers = explainer.layers
        while len(layers) < 12:  # as BLIP base
            layers.append(layers[0])
        assert explainer.default_layer == 8


def test_wrong_inputs_have_one_error_each(tmp_path: Path, picture: Path) -> None:
    explain = load_explainer(save_captioner(tmp_path / "model"), device="cpu")
    match = load_explainer(save_retriever(tmp_path / "matcher"), device="cpu")
    ask = load_explainer(save_answerer(tmp_path / "answerer"), device="cpu")
    wrong: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (explain, (picture, " "), {}, "The text is empty"),
        (explain, (picture, CAPTION), {"layer": 2}, "--layer is 2: expected a number from 0 to 1"),
        (explain, (picture, CAPTION), {"answer": "red"}, "--answer has an effect only with a question answerer"),
        (explain, (picture, "two " * 600), {}, "602 tokens, start and end included: expected at most 512"),
        (explain, (tmp_path / "none.png", CAPTION), {}, "cannot be read as a picture"),
        (match, (picture, None), {}, "no text, which a matcher needs"),
        (match, (picture, "!"), {}, "'', which has no words"),
        (match, (picture, "two cats"), {"layer": 1}, "--layer is 1, the last one"),
        (match, (picture, "two cats"), {"over": "answer"}, "--over has an effect only with a question answerer"),
        (match, (picture, "two " * 31), {}, "31 words: expected at most 30"),
        (match, (picture, "zoos " * 20), {}, "82 tokens, start and end included: expected at most 35"),
        (ask, (picture, None), {}, "no question, which a question answerer needs"),
        (ask, (picture, "is it"), {"answer": " "}, "The answer is empty"),
        (ask, (picture, "is it " * 30), {}, "expected at most 35, for the model reads no more"),
    ]
    for explainer, arguments, options, message in wrong:
        with pytest.raises(RecipeError, match=message):
            explainer(*arguments, **options)


def test_a_phrase_and_the_word_for_a_colour_rest_on_the_object_that_they_name() -> None:
    """A tiny captioner, trained for seconds. `benchmarks/explain.py` has more words, layers and kinds of models."""
    trained = train("captioner", 160)
    rows = {row["word"]: row for row in measure("trained", trained, 40, trained.default_layer)}
    assert rows["phrase"]["objects"] > 40
    assert min(rows[word]["ratio"] for word in ("phrase", "colour")) > 3
    rows = {row["word"]: row for row in measure("untrained", build("captioner"), 40, trained.default_layer)}
    assert max(rows[word]["ratio"] for word in ("phrase", "colour")) < 2


def test_boxes_hold_the_drawn_things_and_nothing_else() -> None:
    for scene in make_scenes("test")[:50]:
        pixels = np.asarray(draw_scene(scene)).astype(int)
        drawn = np.abs(pixels - scene.background).max(2) > 0
        inside = np.zeros_like(drawn)
        for thing in scene.things:
            left, top, right, bottom = thing.box
            box = drawn[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            inside[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = True
            assert box[0].any()
            assert box[:, 0].any()
            assert box[-2:].any()
            assert box[:, -2:].any()
        assert not (drawn & ~inside).any()
