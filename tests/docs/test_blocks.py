"""Every code block of README and docs runs.

- `python`: executed, the blocks of a page in their order with the names of those before.
- `bash`: commands of this package are run, `finetune` and `capfilt` only read their recipe; targets of make, modules of
  `benchmarks` and paths of tests must exist.
- `json` and `yaml`: a recipe or a part of one, read by the recipe reader. `title="NAME"` gives its file that name.
- `jsonl`: a JSON document a line. `text` and other data languages: nothing is run.

`<!-- needs: network -->` before a block exempts it (see `NEEDS`); commands of this package in it are still parsed.

A page runs in a folder of its own, with `my_folder` (an imagefolder with three splits), `photos`, `photo.jpg`,
`scene.png`, and finished tiny models in `outputs`: `shapes_tiny`, `shapes_fine`, `shapes_vqa`, `shapes_retrieval`,
`shapes_pretrain` and `my_folder` (a LoRA run of `my_folder.json`). The Hub is one on loopback, with tiny models under
the names of `HUB_MODELS` and the data sets of the recipes; its user is `me`.
"""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from captioners import draw_pictures, save_captioner
from coco import BASE_MODEL, publish_base_model, publish_coco, publish_flickr8k, write_image_folder
from commands import run_script
from doc_pages import PAGES, name_of
from hub_server import WRITE_TOKEN, HubServer, Token
from PIL import Image
from retrievers import TEXTS, build_retriever
from vqa_models import save_answerer

from blip_recipe.hub.published_files import published_files
from blip_recipe.models.processors import save_processor
from blip_recipe.pretraining.tiny import build_tiny_pretrained

NEEDS = ("network", "a GPU", "a cluster")
"""What a block may need that no test has."""
DATA = ("text", "csv", "html", "bibtex", "js", "mermaid", "toml")
CODE = ("python", "bash", "json", "yaml", "jsonl")
ADAPTER = "you/blip-coco-lora"
WORKER = Path(__file__).with_name("worker.py")
HUB_MODELS = {
    BASE_MODEL: "base",
    "Salesforce/blip-image-captioning-large": "base",
    "Salesforce/blip-vqa-base": "answerer",
    "Salesforce/blip-itm-base-coco": "retriever",
    "Salesforce/blip-itm-large-coco": "retriever",
}
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
MARKER = re.compile(r"^ *<!-- needs: (?P<needs>.+?) -->$")


@dataclass
class Block:
    """A fenced block: the number of its fence's line, its language, and what exempts it."""

    line: int
    language: str
    title: str
    needs: str
    text: str


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    number, marker = 0, ""
    while number < len(lines):
        line = lines[number]
        if fence := FENCE.match(line):
            end = next(n for n in range(number + 1, len(lines)) if lines[n] == f"{fence['indent']}```")
            language, _, options = fence["info"].strip().partition(" ")
            title = re.search(r'title="([^"]+)"', options)
            text = textwrap.dedent("\n".join(lines[number + 1 : end]))
            blocks.append(Block(number + 1, language, title[1] if title else "", marker, text))
            number, marker = end, ""
        elif line.strip():
            marker = found["needs"] if (found := MARKER.match(line)) else ""
        number += 1
    return blocks


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that every page finds in its folder, and the models of the Hub beside them."""
    folder = tmp_path_factory.mktemp("docs")
    place = folder / "place"
    write_image_folder(place / "my_folder")
    (first, *_) = draw_pictures(place / "photos", 3)
    picture = Image.open(first)
    picture.save(place / "scene.png")
    picture.save(place / "photo.jpg")
    for name in ("shapes_tiny", "shapes_fine"):
        save_captioner(place / "outputs" / name)
    save_answerer(place / "outputs/shapes_vqa", task="vqa")
    model, processor = build_retriever()
    model.save_pretrained(place / "outputs/shapes_retrieval")
    save_processor(processor, place / "outputs/shapes_retrieval")
    (place / "outputs/shapes_retrieval/recipe.json").write_text('{"task": "retrieval"}')
    pretrained, processor = build_tiny_pretrained(TEXTS)
    pretrained.save_pretrained(place / "outputs/shapes_pretrain")
    for name, task in ((".", "pretrain"), ("matcher", "retrieval")):
        save_processor(processor, place / "outputs/shapes_pretrain" / name)
        (place / "outputs/shapes_pretrain" / name / "recipe.json").write_text(json.dumps({"task": task}))
    return folder


@pytest.fixture(scope="module")
def hub(stage: Path) -> Iterator[HubServer]:
    """A Hub with tiny models and data sets under the names of real ones."""
    with HubServer({WRITE_TOKEN: Token("me")}, orgs={"you": {"me": "write"}}) as server:
        publish_base_model(server, stage / "base")
        shutil.copytree(stage / "place/outputs/shapes_vqa", stage / "answerer")
        shutil.copytree(stage / "place/outputs/shapes_retrieval", stage / "retriever")
        for repo_id, source in HUB_MODELS.items():
            server.publish_model(repo_id, stage / source)
        (stage / "data").mkdir()
        publish_coco(server, stage / "data")
        publish_flickr8k(server, stage / "data")
        yield server


RunPage = Callable[[str, list["Block"]], list[str]]

FINISHED_RUN = """
from blip_recipe.finetune import main
main(["recipes/my_folder.json", "--max_steps", "2", "--generation_num_beams", "1", "--metrics", "bleu", "cider",
      "--metric_for_best_model", "cider", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"])
"""


@pytest.fixture(scope="module")
def run_page(stage: Path, hub: HubServer) -> RunPage:
    """Runs the blocks of a page in a process of its own, and gives what failed."""

    def run(name: str, blocks: list[Block]) -> list[str]:
        folder = stage / name.replace("/", "_")
        shutil.copytree(stage / "place", folder)
        request = folder / "blocks.json"
        code = [asdict(block) for block in blocks if block.language in CODE]
        request.write_text(json.dumps({"page": name, "blocks": code}), encoding="utf-8")
        return json.loads(run_script(WORKER, request, env=hub.environment(), cwd=folder))

    failures = run("finished", [Block(1, "python", "", "", FINISHED_RUN)])
    assert not failures, failures[0]
    run_folder = stage / "place/outputs/my_folder"
    shutil.move(stage / "finished/outputs/my_folder", run_folder)
    commit = hub.publish_model(ADAPTER, published_files(run_folder))
    hub.repositories["model", ADAPTER].branches["checkpoints"] = commit
    return run


@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page)], ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, run_page: RunPage) -> None:
    failures = run_page(name_of(page), read_blocks(page))
    assert not failures, "\n\n".join(failures)


def test_every_block_names_its_language_and_what_it_needs() -> None:
    for page in PAGES:
        for block in read_blocks(page):
            where = f"{name_of(page)}:{block.line}"
            assert block.language in CODE + DATA, f"{where}: {block.language!r} is no language that this test knows"
            assert not block.needs or block.needs in NEEDS, f"{where} needs {block.needs!r}: expected one of {NEEDS}"
            if block.needs:
                print(f"not run, as it needs {block.needs}: {where}")


WRONG = """
```python
raise ValueError("wrong")
```

```bash
python -m blip_recipe.finetune recipes/my_folder.json --learning_rat 1e-4
```

<!-- needs: network -->

```bash
python -m blip_recipe.caption you/captioner photo.jpg --beams 3
```

```bash
make qiuckstart
```

```bash
hf auth login
```

```json
{"dataset_name": "my_folder", "lora_rank": 16}
```

```python
assert "ValueError" not in dir()
```
"""


def test_wrong_blocks_are_found(tmp_path: Path, run_page: RunPage) -> None:
    page = tmp_path / "wrong.md"
    page.write_text(WRONG)
    failures = run_page("wrong.md", read_blocks(page))
    assert [failure.partition("\n")[0] for failure in failures] == [
        f"wrong.md:{line}" for line in (2, 6, 12, 16, 20, 24)
    ]
