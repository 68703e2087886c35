"""METEOR: its values, its process, and what may happen to it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metrics_reference import (
    DOG_REFERENCES,
    DOGS,
    Captions,
    References,
    captions_of,
    corpus_values,
    largest_difference,
    references_of,
    scored_rows,
)

from blip_recipe.metrics.errors import JavaEndedError, MetricTimeoutError
from blip_recipe.metrics.meteor import Meteor
from blip_recipe.metrics.scorer import CaptionScorer

WORDS = "a man on the dog rides running big small table in of with white cat sits by".split()  # noqa: SIM905
NOVEL = " ".join(WORDS[number * number % 17] for number in range(30_000))


@pytest.fixture(scope="module")
def scorer() -> Iterator[CaptionScorer]:
    """One METEOR for the module, as one serves a run."""
    with CaptionScorer(["meteor"]) as scorer:
        yield scorer


def javas() -> list[psutil.Process]:
    """The Java processes that this one has started."""
    return [child for child in psutil.Process().children() if "java" in child.name()]


@pytest.mark.parametrize("name", ["raw_300", "fakecap_300"])
def test_scores_equal_those_of_the_reference_scorer(shared: Path, scorer: CaptionScorer, name: str) -> None:
    rows = scored_rows(shared, name)
    scores = scorer.score(captions_of(rows), references_of(rows))
    assert scores.corpus["meteor"] == pytest.approx(corpus_values(shared, name)["meteor"], abs=1e-9)
    assert largest_difference(scores, rows) < 1e-9


def test_one_process_serves_all_evaluations_and_ends_with_the_scorer() -> None:
    with CaptionScorer(["meteor"]) as scorer:
        before = {java.pid for java in javas()}
        with scorer.loading([]):
            assert {java.pid for java in javas()} == before
        with scorer.loading():
            (process,) = [java for java in javas() if java.pid not in before]
        first = scorer.score(DOGS, DOG_REFERENCES)
        assert scorer.score(DOGS, DOG_REFERENCES) == first
        assert [java.pid for java in javas() if java.pid not in before] == [process.pid]
    assert not process.is_running()


@pytest.mark.long
def test_a_process_killed_between_evaluations_is_started_again(scorer: CaptionScorer) -> None:
    first = scorer.score(DOGS, DOG_REFERENCES)
    (process,) = javas()
    process.kill()
    process.wait()
    assert scorer.score(DOGS, DOG_REFERENCES) == first


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_process_killed_during_an_evaluation_is_started_again(number: signal.Signals, scorer: CaptionScorer) -> None:
    captions: Captions = {number: f"a dog runs {number}" for number in range(1000)}
    known: References = {number: ["the dog ran far", "two dogs"] * 5 for number in captions}
    expected = scorer.score(captions, known)
    (process,) = javas()
    # A signal to the whole job does not reach it.
    assert os.getsid(process.pid) == process.pid
    killer = threading.Timer(0.2, process.send_signal, [number])
    killer.start()
    assert scorer.score(captions, known) == expected
    assert [java.pid for java in javas()] != [process.pid]


@pytest.mark.long
def test_a_novel_ends_in_an_error_that_names_it_and_the_next_call_works(scorer: CaptionScorer) -> None:
    expected = scorer.score(DOGS, DOG_REFERENCES)
    began = time.monotonic()
    with pytest.raises((MetricTimeoutError, JavaEndedError), match="image 'b'"):
        scorer.score(DOGS | {"b": NOVEL}, DOG_REFERENCES | {"b": [NOVEL[9:], "a bench"]})
    assert time.monotonic() - began < 120
    assert scorer.score(DOGS, DOG_REFERENCES) == expected


def test_a_meteor_that_hangs_is_ended_and_the_caption_named(tmp_path: Path) -> None:
    hanging = tmp_path / "java"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    with pytest.raises(MetricTimeoutError, match=r"image 7 \('a dog that sleeps'\)"):
        Meteor(str(hanging), patience=0.01).score([7, 5], ["a dog that sleeps", "a cat"], [["a"], ["b"]])
    assert "sleep" not in [child.name() for child in psutil.Process().children()]


@pytest.mark.parametrize(
    "caption", ["", ".", "🐕", "a ||| dog |||", "||||||", "a\rdog", "a\u2028dog", "a\ud800", "SCORE", "\x01"]
)
def test_odd_captions_stay_with_their_image(scorer: CaptionScorer, caption: str) -> None:
    plain: Captions = {1: "a dog runs", 3: "a red bus"}
    known: References = {1: ["the dog runs"], 3: ["the red bus"]}
    expected = scorer.score(plain, known).per_image
    scores = scorer.score(plain | {2: caption}, known | {2: ["a dog", caption]})
    assert scores.per_image[1] == expected[1]
    assert scores.per_image[3] == expected[3]
    assert 0 <= scores.per_image[2]["meteor"] <= 1


def test_many_references_take_the_best(scorer: CaptionScorer) -> None:
    known: References = {1: [f"a cat {number}" for number in range(49)] + ["a dog runs"]}
    assert scorer.score({1: "a dog runs"}, known).corpus == scorer.score({1: "a dog runs"}, {1: ["a dog runs"]}).corpus


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.text(st.characters(codec=None), max_size=30)] * 2), min_size=1, max_size=20))
def test_any_text_is_scored_and_leaves_others_alone(scorer: CaptionScorer, rows: list[tuple[str, str]]) -> None:
    captions: Captions = {index: caption for index, (caption, _) in enumerate(rows)} | {"last": "a dog runs"}
    known: References = {index: [reference] for index, (_, reference) in enumerate(rows)} | {"last": ["a dog runs"]}
    scores = scorer.score(captions, known)
    assert all(0 <= image["meteor"] <= 1 for image in scores.per_image.values())
    assert scores.per_image["last"] == scorer.score({1: "a dog runs"}, {1: ["a dog runs"]}).per_image[1]


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        *(pytest.param(end, marks=pytest.mark.long) for end in ("sys.exit(3)", "raise KeyboardInterrupt")),
    ],
)
def test_no_java_outlives_a_run_however_it_ends(end: str) -> None:
    code = f"""
import os, psutil, signal, sys
from blip_recipe.metrics.java import find_java
from blip_recipe.metrics.meteor import Meteor
meteor = Meteor(find_java())
meteor.start()
print(*(child.pid for child in psutil.Process().children()), flush=True)
{end}
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    (pid,) = map(int, ended.stdout.split())
    deadline = time.monotonic() + 120
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


FULL_DISK_AND_TURKISH = """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
os.environ["JAVA_TOOL_OPTIONS"] = "-Duser.language=tr -Duser.country=TR -Dfile.encoding=ISO-8859-9"
"""
JAVA_OF_PIP_ALONE = """
import os
os.environ["PATH"] = os.environ["JAVA_HOME"] = "/nowhere"
"""
SCORE = """
from blip_recipe.metrics import score_captions
scores = score_captions({1: "A BIG CAFÉ IN IZMIR"}, {1: ["a big café in Izmir"]}, ["meteor", "exact_match"])
os.write(1, repr(scores.corpus).encode())
"""


@pytest.mark.long
def test_two_processes_at_once_one_on_a_full_disk_one_with_the_java_of_pip_get_the_same_scores(
    scorer: CaptionScorer,
) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", setting + SCORE], stdout=subprocess.PIPE, text=True)
        for setting in (FULL_DISK_AND_TURKISH, JAVA_OF_PIP_ALONE)
    ]
    expected = scorer.score({1: "A BIG CAFÉ IN IZMIR"}, {1: ["a big café in Izmir"]}).corpus | {"exact_match": 1.0}
    for process in processes:
        assert ast.literal_eval(process.communicate(timeout=300)[0]) == expected


def test_meteor_of_any_images_follows_from_their_statistics(scorer: CaptionScorer) -> None:
    """The jar scores a set by sums over its captions, in which a caption that matches as a whole has no chunk."""
    references: References = {
        image: [f"a {word} runs on the grass", f"the {word} is on a field"] for image, word in enumerate(WORDS)
    }
    captions: Captions = {
        image: f"a {WORDS[-number]} running on the green field" for number, image in enumerate(references)
    }
    captions |= {0: "", 1: references[1][0], 2: "zebra"}
    scores = scorer.score(captions, references, ["meteor"], resamples=200)
    (statistics,) = scores.statistics
    assert statistics.of_set()["meteor"] == pytest.approx(scores.corpus["meteor"], abs=1e-12)
    assert 0 < scores.intervals["meteor"][0] < scores.corpus["meteor"] < scores.intervals["meteor"][1] < 1
    for part in ([0, 1, 4], [0], [1]):
        chosen: Captions = {image: captions[image] for image in part}
        expected = scorer.score(chosen, {each: references[each] for each in chosen}, ["meteor"]).corpus["meteor"]
        assert statistics.scores(statistics.rows[part].sum(0)).tolist() == pytest.approx([expected], abs=1e-12)


WORDS = ["dog", "horse", "cat", "child", "cow", "sheep"]
