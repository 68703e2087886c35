"""Make the example cards of `model_cards/examples` anew, each by the run that it describes.

python tests/make_examples.py            # trains all five, and keeps what the runs leave
python tests/make_examples.py --render   # after a change of the templates: writes the cards again from their facts

The quickstart comes first; the others start from its model, published under a made-up name on a Hub on loopback.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from commands import CHECKOUT, run_checked
from hub_server import WRITE_TOKEN, HubServer, Token

from blip_recipe.card.facts import (
    CardFacts,
    EnergyFacts,
    OriginFacts,
    ResultFacts,
    SampleFacts,
    ScoreFacts,
    SplitFacts,
    TaskWords,
    TrainingFacts,
)
from blip_recipe.card.pictures import SAMPLE_FILES
from blip_recipe.card.rendering import FACTS, render_card
from blip_recipe.hub.published_files import published_files
from blip_recipe.models.decoding import DecodingSettings

FOLDER = CHECKOUT / "model_cards" / "examples"
QUICKSTART = "shapes_tiny"
USER = "your-name"
BASE = f"{USER}/blip-shapes"
BASE_LICENSE = "apache-2.0"
"""The quickstart's weights are new, so whoever publishes them chooses a licence."""

FROM_BASE: dict[str, list[str]] = {
    "shapes_lora": [],
    "shapes_lora_8bit": ["--load_in_8bit", "true"],
    "shapes_full": ["--use_peft", "false", "--learning_rate", "3e-4"],
    "shapes_merged": ["--merge_adapter", "true"],
}
"""Options of `recipes/shapes_lora.json` by example."""

EXAMPLES = (QUICKSTART, *FROM_BASE)
KEPT = ("README.md", "all_results.json", "recipe.json", "training_curves.png", FACTS, *SAMPLE_FILES.values())


def main() -> None:
    """Train and keep what the runs leave, unless only the cards are to be written."""
    parser = argparse.ArgumentParser(description="Make the example cards anew.")
    parser.add_argument("--render", action="store_true", help="only write the cards again, from the facts kept")
    parser.add_argument(
        "--outputs", type=Path, default=CHECKOUT / "outputs", help="where the runs are; default: outputs"
    )
    arguments = parser.parse_args()
    if not arguments.render:
        train_all(arguments.outputs.resolve())
    for name in EXAMPLES:
        (FOLDER / name / "README.md").write_text(render_card(read_facts(name)), encoding="utf-8", newline="\n")


def train_all(outputs: Path) -> None:
    """Run the quickstart, and from its model the others; keep what each leaves."""
    finetune(QUICKSTART, [f"recipes/{QUICKSTART}.json"], outputs)
    with HubServer({WRITE_TOKEN: Token(USER)}) as hub:
        files = {name: path.read_bytes() for name, path in published_files(outputs / QUICKSTART).items()}
        files["README.md"] = files["README.md"].replace(
            b"\nlicense: unknown\n", f"\nlicense: {BASE_LICENSE}\n".encode()
        )
        hub.publish_model(BASE, files)
        for name, options in FROM_BASE.items():
            push = ["--push_to_hub", "true", "--hub_model_id", f"{USER}/{name.replace('_', '-')}"]
            arguments = ["recipes/shapes_lora.json", "--model_name_or_path", BASE, *push, *options]
            finetune(name, arguments, outputs, env=hub.environment())


def finetune(name: str, arguments: list[str], outputs: Path, env: dict[str, str] | None = None) -> None:
    """Run the main job anew in `outputs/name`, and keep what it leaves."""
    output_dir = ["--output_dir", f"{outputs.name}/{name}", "--overwrite_output_dir", "true"]
    run_checked("blip_recipe.finetune", *arguments, *output_dir, cwd=outputs.parent, env=env, timeout=3600)
    keep(outputs / name)


def keep(run: Path) -> None:
    """Copy what an example shows out of an output directory."""
    folder = FOLDER / run.name
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, folder / name)


def read_facts(name: str) -> CardFacts:
    """The facts of an example's card, as its run left them."""
    facts: dict[str, Any] = json.loads((FOLDER / name / FACTS).read_text(encoding="utf-8"))
    results, training = facts["results"], facts["training"]
    return CardFacts(
        **facts
        | {
            "base": OriginFacts(**facts["base"]),
            "dataset": OriginFacts(**facts["dataset"]),
            "splits": [SplitFacts(**split) for split in facts["splits"]],
            "decoding": DecodingSettings(**facts["decoding"]),
            "results": ResultFacts(
                **results
                | {
                    "scored": results["scored"] and SplitFacts(**results["scored"]),
                    "scores": [ScoreFacts(**score) for score in results["scores"]],
                    "habits": [ScoreFacts(**habit) for habit in results["habits"]],
                    "samples": [SampleFacts(**sample) for sample in results["samples"]],
                }
            ),
            "training": TrainingFacts(
                **training | {"energy": training["energy"] and EnergyFacts(**training["energy"])}
            ),
            "task": TaskWords(**facts["task"]),
        }
    )


if __name__ == "__main__":
    main()
