"""Save what a run leaves: a full model, an adapter, one with added tokens, one that writes apostrophes; and captions.

python tests/compatibility/save_repositories.py FOLDER   (with the transformers that blip_recipe asks for)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

RECORDED = {"num_beams": 3, "max_length": 16, "min_length": 5}
ASKED_FOR = {"num_beams": 2, "max_new_tokens": 9, "min_length": 8}
PROMPT = "two green circles"


def main() -> None:
    """Write the repositories, `pictures/` and `expected.json` into the folder of the command line."""
    from captioners import SPELT, draw_pictures, save_adapter, save_captioner, save_speller, save_translated
    from transformers import GenerationConfig

    import blip_recipe

    folder = Path(sys.argv[1]).resolve()
    pictures = draw_pictures(folder / "pictures", 6)
    repositories = [save_captioner(folder / "full"), save_adapter(folder / "lora", folder / "full")]
    repositories.append(save_translated(folder / "translated"))
    repositories.append(save_speller(folder / "spelt", pictures[: len(SPELT)]))
    for name in ("full", "translated", "spelt"):
        GenerationConfig(**RECORDED).save_pretrained(folder / name)
    expected = {}
    for repository in repositories:
        pipe = blip_recipe.caption_pipeline(repository, device="cpu")
        results = {
            "as recorded": pipe(pictures, **RECORDED),
            "without a prompt": pipe(pictures, **ASKED_FOR),
            "with a prompt": pipe(pictures, prompt=PROMPT, **ASKED_FOR),
        }
        expected[repository.name] = {
            kind: [captions[0]["generated_text"] for captions in result] for kind, result in results.items()
        }
    spelt = expected["spelt"]["as recorded"][: len(SPELT)]
    assert spelt == SPELT, spelt
    settings = {"decoding": ASKED_FOR, "prompt": PROMPT, "captions": expected}
    (folder / "expected.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    print(f"saved {', '.join(expected)} in {folder}")


if __name__ == "__main__":
    main()
