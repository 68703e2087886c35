"""Load saved repositories with plain transformers, and compare the captions with ours.

python tests/compatibility/check_repositories.py FOLDER   (`run.py` does so with one transformers after another)
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from transformers import pipeline as typed_pipeline

pipeline: Any = typed_pipeline
VERSION = importlib.metadata.version("transformers")
HAS_TASK = VERSION.startswith("4.")


def main() -> None:
    """Every repository of the folder through each pipeline that this transformers has."""
    folder = Path(sys.argv[1])
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    pictures = [str(path) for path in sorted((folder / "pictures").iterdir())]
    for name, captions in expected["captions"].items():
        repository = str(folder / name)
        check_image_text_to_text(repository, pictures, captions, expected["decoding"], expected["prompt"])
        if HAS_TASK:
            check_image_to_text(repository, pictures, captions, expected["decoding"], expected["prompt"])
        print(f"transformers {VERSION} captions {name} as blip_recipe does")
    check_the_task_after_importing_blip_recipe(str(folder / "full"))


def check_image_text_to_text(
    repository: str, pictures: list[str], captions: dict[str, list[str]], decoding: dict[str, int], prompt: str
) -> None:
    """The task that both versions have; it takes the prompt as `text`."""
    pipe = pipeline("image-text-to-text", model=repository, device="cpu")
    assert pipe(images=pictures[0], text="")[0]["generated_text"], "up to 256 new tokens by default"
    for kind, text in {"without a prompt": "", "with a prompt": prompt}.items():
        given = [pipe(images=picture, text=text, generate_kwargs=dict(decoding)) for picture in pictures]
        assert_equal([result[0]["generated_text"].strip() for result in given], captions[kind], f"{repository} {kind}")


def check_image_to_text(
    repository: str, pictures: list[str], captions: dict[str, list[str]], decoding: dict[str, int], prompt: str
) -> None:
    """The older task; for a full model its defaults are those of the repository's `generation_config.json`."""
    pipe = pipeline("image-to-text", model=repository, device="cpu")
    wishes: dict[str, dict[str, Any]] = {
        "without a prompt": {"generate_kwargs": decoding},
        "with a prompt": {"generate_kwargs": decoding, "prompt": prompt},
    }
    for kind, wish in wishes.items():
        results = pipe(pictures, batch_size=2, **wish)
        assert_equal(
            [result[0]["generated_text"].strip() for result in results], captions[kind], f"{repository} {kind}"
        )
    if Path(repository, "generation_config.json").is_file():  # without a recorded length, 256 new tokens
        texts = [result[0]["generated_text"].strip() for result in pipe(pictures)]
        assert_equal(texts, captions["as recorded"], f"{repository} as it is")


def check_the_task_after_importing_blip_recipe(repository: str) -> None:
    """transformers 4 has the task itself, and keeps it; 5 gets ours, whether or not it renames the task first."""
    import blip_recipe  # noqa: F401

    given = type(pipeline("image-to-text", model=repository, device="cpu"))
    expected = "transformers.pipelines.image_to_text" if HAS_TASK else "blip_recipe.captioning.pipeline"
    assert_equal(given.__module__, expected, "the task after importing blip_recipe")
    print(f"transformers {VERSION} takes image-to-text from {given.__module__}")


def assert_equal(given: object, expected: object, what: str) -> None:
    """End with both values when they differ."""
    if given != expected:
        sys.exit(f"transformers {VERSION}, {what}:\n  given    {given}\n  expected {expected}")


if __name__ == "__main__":
    main()
