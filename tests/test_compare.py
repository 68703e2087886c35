"""Two files of predictions are compared, or refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip_recipe.compare import main
from blip_recipe.errors import RecipeError
from blip_recipe.metrics import score_captions

Row = dict[str, Any]

TEXTS = ["a dog runs on the beach", "two cats sleep on a sofa", "a red bus in the street", "a man rides a horse"]


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def captions(*, right: int, images: int = 12, **changes: Any) -> list[Row]:
    """Captions of which the first ones are right, with a score of another scorer and stale ones of ours."""
    return [
        {
            "image_id": image,
            "caption": TEXTS[image % 4] if image < right else "there is something",
            "references": [TEXTS[image % 4], "a picture"],
            "scores": {"cider": -1.0, "bleu_4": -1.0, "clip_score": 0.5 + image / 100},
        }
        | changes
        for image in range(images)
    ]


def test_a_table_shows_both_scores_their_change_and_the_pictures_that_differ_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / name, captions(right=right)) for name, right in (("a.jsonl", 3), ("b.jsonl", 11))]
    main([*files, "--output", str(tmp_path / "out.json"), "--shown", "2"])
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    references = {row["image_id"]: row["references"] for row in captions(right=0)}
    for side, right in (("first", 3), ("second", 11)):
        texts = {row["image_id"]: row["caption"] for row in captions(right=right)}
        scores = score_captions(texts, references, ["bleu", "cider"])
        for name in ("bleu_1", "bleu_4", "cider"):
            assert found["scores"][name][side] == pytest.approx(scores.corpus[name])
            assert found["scores"][name][f"{side}_interval"] == pytest.approx(scores.intervals[name])
    assert found["scores"]["clip_score"]["first"] == pytest.approx(0.555)
    assert found["scores"]["clip_score"]["p_value"] == 1
    assert found["scores"]["cider"]["p_value"] < 0.05
    assert (found["images"], found["ranked_by"], found["worse"]) == (12, "cider", [])
    assert [row["first"] for row in found["better"]] == ["there is something"] * 2
    assert {row["second"] for row in found["better"]} <= set(TEXTS)
    assert table.startswith(f"12 images: {files[0]} → {files[1]}\n\nscore ")
    assert f"{found['scores']['cider']['change']:+.4f} (" in table
    for row in found["better"]:
        assert f"    second:     {row['second']}\n    references: {row['second']} | a picture" in table
    main([*files[::-1], "--metrics", "rouge_l", "--json"])
    back = json.loads(capsys.readouterr().out)
    assert list(back["scores"]) == ["rouge_l"]
    assert back["scores"]["rouge_l"]["change"] < 0
    assert len(back["worse"]) == 5


def test_files_without_scores_are_scored_against_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = [
        [{"image_id": row["image_id"], "caption": row["caption"]} for row in captions(right=right)] for right in (2, 9)
    ]
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in zip("ab", plain, strict=True)]
    references = [{key: row[key] for key in ("image_id", "references")} for row in captions(right=0, images=14)]
    words = ["--references", write(tmp_path / "references.jsonl", references), "--metrics", "bleu"]
    main([*files, *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["ranked_by"]) == (12, "bleu_4")
    assert found["scores"]["bleu_1"]["second"] > found["scores"]["bleu_1"]["first"]
    with pytest.raises(RecipeError, match=r"have no scores in common: expected some, or"):
        main([*files, *words[:2]])


def test_pictures_that_only_one_file_has_are_counted_and_left_out_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.jsonl", captions(right=3))
    b = write(tmp_path / "b.jsonl", [*captions(right=11)[2:], captions(right=0, images=30)[-1]])
    with pytest.raises(RecipeError, match=r"2 images are only in .*a\.jsonl and 1 only in .*b\.jsonl.* the 10 that"):
        main([a, b])
    main([a, b, "--subset", "true", "--json"])
    assert json.loads(capsys.readouterr().out)["images"] == 10


ANSWERS = [{"image_id": 1, "question_id": 1, "question": "what?", "answer": "a", "answers": ["a"], "scores": {"x": 1}}]


@pytest.mark.parametrize(
    ("first", "second", "words", "message"),
    [
        (captions(right=1), ANSWERS, [], "holds images with references, .* questions with answers: expected predict"),
        (captions(right=1), captions(right=1, references=["other"]), [], r"have other references for 12 images"),
        (captions(right=1), [], [], r"b\.jsonl is empty"),
        (captions(right=1), [{"image_id": 1}], [], "line 1 of .* has the fields image_id: expected lines of"),
        (captions(right=1), captions(right=1, scores=None), [], "line 1 of .*b.jsonl has the fields image_id, caption"),
        (captions(right=1), captions(right=1)[:1] * 2, [], "image 0 occurs more than once in .*b.jsonl"),
        (
            captions(right=1),
            [row | {"image_id": "x"} for row in captions(right=1, images=1)],
            [],
            "no image_id in comm",
        ),
        (ANSWERS, ANSWERS, ["--metrics", "bleu"], "holds no captions: leave --references and --metrics out"),
        (captions(right=1), captions(right=1, scores={}), [], "have no scores in common"),
        (ANSWERS, [ANSWERS[0] | {"scores": {}}], [], "have no scores in common"),
        (ANSWERS, ANSWERS, ["--resamples", "0"], "resamples is 0: expected at least 100$|at least 100."),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: list[Row], second: list[Row], words: list[str], message: str, tmp_path: Path
) -> None:
    files = [write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)]
    with pytest.raises(RecipeError, match=message):
        main([*files, *words])
