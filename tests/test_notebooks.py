"""The notebooks: they run from top to bottom, what they claim holds, and they are committed with clean outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from coco import BASE_MODEL, publish_base_model, write_image_folder
from commands import CHECKOUT
from hub_server import WRITE_TOKEN, HubServer, Token
from nbformat import NotebookNode

from notebooks.execute import execute

NAMES = ("finetune_blip", "blip_modes")
UNCLEAN = re.compile(
    r"/(?:root|home|tmp|work|Users|usr|opt)/|[A-Z]:\\|hf_[A-Za-z0-9]{8}|\bhttps?://(?:localhost|127\.)|[Ww]arning|Traceback"
)
"""What a reader of a committed notebook must not find: paths of a machine, tokens, servers of one's own, warnings."""

LONG = pytest.param(False, id="as committed", marks=pytest.mark.long)
SHORT = pytest.param(True, id="fewer steps")
FEWER_STEPS = {
    "finetune_blip": {'"max_steps": 500': '"max_steps": 120', "STEPS_OF_EXPERIMENTS = 60": "STEPS_OF_EXPERIMENTS = 20"},
    "blip_modes": {
        'ANSWERING = {"max_steps": 200': 'ANSWERING = {"max_steps": 120',
        'CAPTIONING = {"max_steps": 200': 'CAPTIONING = {"max_steps": 140',
    },
}
"""What `make test` changes in the settings; `make test-all` also runs the notebook as it is committed."""

PICTURES = {"finetune_blip": 10, "blip_modes": 9}
"""At least so many are in the outputs."""


def read(name: str) -> NotebookNode:
    return nbformat.read(CHECKOUT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def texts(notebook: NotebookNode) -> list[str]:
    """What a reader sees beside pictures."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown = [output.get("text", "") for output in outputs]
    return shown + [text for each in outputs for kind, text in each.get("data", {}).items() if kind.startswith("text/")]


def assert_clean(notebook: NotebookNode) -> None:
    """Nothing on stderr, and nothing that does not belong into a committed notebook."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    assert [text for text in texts(notebook) if UNCLEAN.search(text)] == []


def run(notebook: NotebookNode, folder: Path, values: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Execute a notebook; returns what some of its variables hold in the end, `values` being a dictionary in Python."""
    asked = nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({values}, default=float))")
    notebook.cells.append(asked)
    execute(notebook, folder, environment)
    return json.loads(notebook.cells.pop().outputs[0].text)


def change_settings(notebook: NotebookNode, source: str) -> None:
    """Replace the one cell that a reader changes."""
    (settings,) = (cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", []))
    settings.source = source


def take_fewer_steps(notebook: NotebookNode, name: str) -> None:
    """Shorten the trainings in the one cell that a reader changes."""
    (settings,) = (cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", []))
    for committed, fewer in FEWER_STEPS[name].items():
        assert settings.source.count(committed) == 1
        settings.source = settings.source.replace(committed, fewer)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_with_clean_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(pictures(notebook)) >= PICTURES[name]
    assert_clean(notebook)
    assert all(set(cell.metadata) <= {"tags", "jupyter", "cellView"} for cell in cells)
    assert (CHECKOUT / "notebooks" / f"{name}.ipynb").stat().st_size < 2_000_000


@pytest.mark.parametrize("is_short", [SHORT, LONG])
def test_finetune_blip_runs_and_what_it_claims_holds(tmp_path: Path, is_short: bool) -> None:
    notebook = read("finetune_blip")
    if is_short:
        take_fewer_steps(notebook, "finetune_blip")
    found = run(
        notebook,
        tmp_path,
        "{'before': before, 'after': after, 'losses': losses, 'padding': share_of_padding, 'right': scores_right,"
        " 'usual': scores_usual, 'bleu': [bleu_by_hand, record['scores']['bleu_4']],"
        " 'cider': [cider_by_hand, record['scores']['cider']], 'spice': spice_by_hand, 'lora': cider_lora,"
        " '8bit': cider_8bit, 'same': reloaded == trainer.predictions[0]['caption']}",
    )
    assert_clean(notebook)
    assert len(pictures(notebook)) >= PICTURES["finetune_blip"]
    before, after = found["before"], found["after"]
    assert before["eval_cider"] < 0.5
    assert after["eval_cider"] > (1 if is_short else 3)
    assert after["eval_bleu_4"] > (0.3 if is_short else 0.7)
    assert after["eval_loss"] < before["eval_loss"] / 3
    # The usual mistake.
    assert 0.4 < found["padding"] < 0.9
    right, wrong_start = (found["losses"][f"{start}, padding left out"] for start in ("[DEC]", "[CLS]"))
    padded = found["losses"]["[DEC], padding learnt"]
    assert padded > 5 * right
    assert wrong_start == pytest.approx(right, rel=0.2)
    assert found["usual"]["cider"] < found["right"]["cider"]
    # Scores by hand.
    assert found["bleu"][0] == pytest.approx(found["bleu"][1], abs=1e-4)
    assert found["cider"][0] == pytest.approx(found["cider"][1], abs=1e-6)
    assert found["spice"] == pytest.approx(8 / 11)
    for name in ("lora", "8bit"):
        assert found[name][1] > 3 * found[name][0]
    assert found["same"]


@pytest.mark.parametrize("is_short", [SHORT, LONG])
def test_blip_modes_runs_and_what_it_claims_holds(tmp_path: Path, is_short: bool) -> None:
    notebook = read("blip_modes")
    if is_short:
        take_fewer_steps(notebook, "blip_modes")
    found = run(
        notebook,
        tmp_path,
        "{'accuracy': [accuracy_before, accuracy_after], 'recall': [recall_before, recall_after],"
        " 'own': matches.diag().mean().item(), 'all': matches.mean().item(), 'wrong': [wrong_before, wrong_after],"
        " 'true': [true_before, true_after], 'left': [len(clean), len(web)]}",
    )
    assert_clean(notebook)
    assert len(pictures(notebook)) >= PICTURES["blip_modes"]
    assert found["accuracy"][0] < 0.3
    assert found["accuracy"][1] > 0.6
    before, after = (each["eval_recall_mean"] for each in found["recall"])
    assert after > before + 0.3
    assert found["own"] > found["all"] + 0.3
    assert found["wrong"][0] == pytest.approx(0.4)
    assert found["wrong"][1] < 0.1
    assert found["true"][1] > found["true"][0]
    assert 0 < found["left"][0] <= found["left"][1]


def test_one_cell_changes_to_a_model_of_the_hub_and_ones_own_folder(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "my_photos")
    notebook = read("finetune_blip")
    change_settings(
        notebook,
        f"""
MODEL, DATA = {BASE_MODEL!r}, "my_photos"
PROMPT = "a picture of "
TRAINING = {{"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 1e-4}}
STEPS_OF_EXPERIMENTS = 1
OUTPUT_DIR, REPOSITORY, SPICE = "outputs/captioner", "me/my-captioner", False
""",
    )
    with HubServer({WRITE_TOKEN: Token("me")}) as hub:
        publish_base_model(hub, tmp_path / "base")
        values = run(notebook, tmp_path, "{'same': reloaded == trainer.predictions[0]['caption']}", hub.environment())
        assert {"README.md", "model.safetensors", "recipe.json"} <= hub.files("me/my-captioner").keys()
        assert len(hub.commits("me/my-captioner")) == 2
    assert values["same"]
