"""Load saved repositories with plain transformers, and compare the captions with ours.

python tests/compatibility/check_repositories.py FOLDER   (with transformers 4.57, and with the newest 5)
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
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
    if HAS_TASK:
        check_that_blip_recipe_leaves_the_task_alone()


def check_image_text_to_text(
    repository: str, pictures: list[str], captions: dict[str, list[str]], decoding: dict[str, int], prompt: str
) -> None:
    """The task that both versions have; it takes the prompt as `text`."""
    pipe = pipeline("image-text-to-text", model=repository, device="cpu")
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
    if Path(repository, "generation_config.json").is_file():
        results = pipe(pictures)
        assert_equal(
            [result[0]["generated_text"].strip() for result in results],
            captions["as recorded"],
            f"{repository} as it is",
        )


def check_that_blip_recipe_leaves_the_task_alone() -> None:
    """transformers 4 has the task itself: importing blip_recipe changes nothing."""
    code = (
        "import blip_recipe, transformers; "
        "print(transformers.pipelines.SUPPORTED_TASKS['image-to-text']['impl'].__module__)"
    )
    checkout = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout, check=True)
    assert_equal(done.stdout.strip(), "transformers.pipelines.image_to_text", "the task after importing blip_recipe")
    print(f"transformers {VERSION} keeps its own image-to-text")


def assert_equal(given: object, expected: object, what: str) -> None:
    """End with both values when they differ."""
    if given != expected:
        sys.exit(f"transformers {VERSION}, {what}:\n  given    {given}\n  expected {expected}")


if __name__ == "__main__":
    main()
