"""What the tests of the metrics compare with: values of the reference scorers, and pycocoevalcap itself."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from blip_recipe.metrics.java import find_java, java_command, pycocoevalcap_file
from blip_recipe.metrics.scores import ImageId, Scores
from blip_recipe.metrics.tokenizer import clean_caption

Captions = dict[ImageId, str]
References = dict[ImageId, list[str]]

DOGS: Captions = {"a": "a brown dog runs across the grass", "b": "two men sit on a bench"}
DOG_REFERENCES: References = {
    "a": ["A dog running on green grass.", "The brown dog runs."],
    "b": ["Two men are sitting on a park bench.", "Men on a bench, talking.", "a bench"],
}


def scored_rows(shared: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one of the files with reference values."""
    return [
        json.loads(line)
        for line in (shared / "data" / "scoring" / f"{name}.jsonl").read_text("utf-8").split("\n")
        if line
    ]


def corpus_values(shared: Path, name: str) -> dict[str, float]:
    """The reference values of the whole file."""
    values: dict[str, float] = json.loads((shared / "data" / "scoring" / f"{name}.corpus.json").read_text("utf-8"))
    return values


def captions_of(rows: list[dict[str, Any]]) -> Captions:
    """The predictions of the rows."""
    return {row["image_id"]: row["prediction"] for row in rows}


def references_of(rows: list[dict[str, Any]]) -> References:
    """The references of the rows."""
    return {row["image_id"]: row["references"] for row in rows}


def largest_difference(scores: Scores, rows: list[dict[str, Any]]) -> float:
    """The largest difference between a score of an image and its reference value."""
    return max(
        abs(value - row["expected"][name])
        for row in rows
        for name, value in scores.per_image[row["image_id"]].items()
        if name in row["expected"]
    )


def pycocoevalcap_tokens(texts: dict[ImageId, list[str]]) -> dict[ImageId, list[str]]:
    """What the PTB tokenizer of pycocoevalcap makes of captions."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens: dict[ImageId, list[str]] = PTBTokenizer().tokenize(
        {image_id: [{"caption": text} for text in captions] for image_id, captions in texts.items()}
    )
    return tokens


def pycocoevalcap_scores(predictions: Captions, references: References) -> dict[str, list[float]]:
    """BLEU, ROUGE-L and CIDEr of pycocoevalcap for each image, in order."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    known = pycocoevalcap_tokens(references)
    captions = pycocoevalcap_tokens({image_id: [text] for image_id, text in predictions.items()})
    _, bleu = Bleu(4).compute_score(known, captions, verbose=0)
    scores = {f"bleu_{n + 1}": values for n, values in enumerate(bleu)}
    return scores | {
        "rouge_l": list(Rouge().compute_score(known, captions)[1]),
        "cider": list(Cider().compute_score(known, captions)[1]),
    }


def jar_lines(lines: list[str]) -> list[str]:
    """What the COCO tools' tokenizer in Java prints for lines of text."""
    jar = pycocoevalcap_file("tokenizer", "stanford-corenlp-3.4.1.jar")
    main = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    answer = subprocess.run(
        java_command(find_java(), ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"], main),
        input="\n".join(lines).encode(),
        capture_output=True,
        check=True,
    )
    return answer.stdout.decode().split("\n")


def coco_captions() -> list[str]:
    """The 202,654 captions of COCO's validation images, which are in SPICE's jar."""
    with zipfile.ZipFile(pycocoevalcap_file("spice", "spice-1.0.jar")) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    return [clean_caption(each["caption"]) for each in annotations]
