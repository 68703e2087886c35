"""`blip-recipe space`: the files that it pushes, the page that they make, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from captioners import draw_pictures, save_adapter, save_captioner, write_recipe
from commands import PORTS, Process, run_checked, run_code, run_module, start_module, wait_for_server
from hub_server import READ_TOKEN, HubServer
from retrievers import build_retriever
from vqa_models import save_answerer

from blip_recipe.card.space import link_space
from blip_recipe.models.processors import save_processor

CARD = "---\nlibrary_name: transformers\n---\n\n# BLIP captions\n\nA model.\n"
SPACE = ("--repo_id", "lab/try-it")


@pytest.fixture(scope="module", name="hub")
def fixture_hub() -> Iterator[HubServer]:
    """A Hub for all tests here."""
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module", name="captioner")
def fixture_captioner(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner that was pushed."""
    folder = save_captioner(tmp_path_factory.mktemp("space") / "captioner", prompt="a picture of ")
    recipe = {"prompt": "a picture of ", "generation_max_length": 12, "generation_num_beams": 2}
    write_recipe(folder, **recipe, hub_model_id="lab/captioner")
    (folder / "README.md").write_text(CARD)
    hub.publish_model("lab/captioner", folder)
    return folder


@pytest.fixture(scope="module", name="pushed")
def fixture_pushed(hub: HubServer, captioner: Path) -> subprocess.CompletedProcess[str]:
    """The command, run twice for a local directory."""
    for _ in range(2):
        done = run_module("blip_recipe.space", captioner, *SPACE, env=hub.environment())
        assert done.returncode == 0, done.stderr
    return done


def test_a_space_is_one_commit_and_a_second_run_does_nothing(
    hub: HubServer, pushed: subprocess.CompletedProcess[str]
) -> None:
    assert pushed.stdout == f"{hub.url}/spaces/lab/try-it\n"
    assert len(hub.commits("lab/try-it", "space")) == 2  # with the Hub's own
    files = hub.files("lab/try-it", kind="space")
    assert set(files) == {"README.md", "app.py", "requirements.txt"}
    metadata = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert metadata["sdk"] == "gradio"
    assert metadata["models"] == ["lab/captioner"]
    assert metadata["app_file"] == "app.py"
    needed = {re.split("[<>=]", line)[0] for line in files["requirements.txt"].decode().splitlines()}
    assert needed == {"gradio", "pillow", "torch", "torchvision", "transformers"}
    assert b"import blip_recipe" not in files["app.py"]


def test_the_card_links_the_space_here_and_on_the_hub(
    hub: HubServer, captioner: Path, pushed: subprocess.CompletedProcess[str]
) -> None:
    link = f"# BLIP captions\n\n[Try it in a Space]({hub.url}/spaces/lab/try-it)\n\nA model.\n"
    assert (captioner / "README.md").read_text().endswith(link)
    assert hub.files("lab/captioner")["README.md"] == (captioner / "README.md").read_bytes()
    assert len(hub.commits("lab/captioner")) == 3  # the Hub's own, the model, the link


def test_a_card_has_one_link() -> None:
    linked = link_space(CARD, "https://hub/spaces/a/one")
    assert link_space(linked, "https://hub/spaces/a/two") == linked.replace("one", "two")
    assert link_space("no heading\n", "url") == "\n\n[Try it in a Space](url)\nno heading\n"


def write_space(hub: HubServer, repo_id: str, folder: Path) -> Path:
    """The files of a Space in a folder."""
    folder.mkdir()
    for name, content in hub.files(repo_id, kind="space").items():
        (folder / name).write_bytes(content)
    return folder


def ask(folder: Path, hub: HubServer, python: str, *inputs: object, name: str) -> object:
    """Start the app of a Space in `folder` with `python`, and call its function `name` with the inputs."""
    client = pytest.importorskip("gradio_client", reason="gradio is not installed: pip install 'blip-recipe[demo]'")
    port, log = next(PORTS), folder / "log"
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "temporary"), "OMP_NUM_THREADS": "1"}
    env = hub.environment(home=folder / "home") | settings
    process: Process
    if python == sys.executable:
        process = start_module("app", cwd=folder, env=env, log=log)
    else:
        env.pop("PYTHONPATH", None)
        with log.open("wb") as output:
            process = subprocess.Popen([python, "app.py"], cwd=folder, env=env, stdout=output, stderr=output)
    try:
        wait_for_server(f"http://127.0.0.1:{port}", process, log)
        return client.Client(f"http://127.0.0.1:{port}", verbose=False).predict(*inputs, api_name=f"/{name}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(name="picture")
def fixture_picture(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures", 3)[2]


def expected_caption(captioner: Path, picture: Path) -> str:
    """What our own pipeline writes; the stock class repeats the prompt."""
    from blip_recipe import caption_pipeline

    return f"a picture of {caption_pipeline(captioner, device='cpu')(str(picture))[0]['generated_text']}"


def test_the_app_captions_a_picture_with_plain_transformers(
    hub: HubServer, captioner: Path, pushed: object, picture: Path, tmp_path: Path
) -> None:
    client = pytest.importorskip("gradio_client", reason="gradio is not installed: pip install 'blip-recipe[demo]'")
    folder = write_space(hub, "lab/try-it", tmp_path / "space")
    found = ask(folder, hub, sys.executable, client.handle_file(str(picture)), name="caption")
    assert found == expected_caption(captioner, picture)


@pytest.mark.long
def test_the_app_runs_in_an_empty_environment_with_its_own_requirements(
    hub: HubServer, captioner: Path, pushed: object, picture: Path, tmp_path: Path
) -> None:
    client = pytest.importorskip("gradio_client", reason="gradio is not installed: pip install 'blip-recipe[demo]'")
    folder = write_space(hub, "lab/try-it", tmp_path / "space")
    uv = [sys.executable, "-m", "uv"]
    with tempfile.TemporaryDirectory() as venv:  # of several GB, which pytest would keep for a while
        python = str(Path(venv, "Scripts/python.exe" if os.name == "nt" else "bin/python"))
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", python, "-r", "requirements.txt"]
        subprocess.run(install, cwd=folder, check=True)
        listed = subprocess.run([*uv, "pip", "list", "--python", python], capture_output=True, text=True, check=True)
        assert "blip" not in listed.stdout
        found = ask(folder, hub, python, client.handle_file(str(picture)), name="caption")
    assert found == expected_caption(captioner, picture)


def run_app(hub: HubServer, model_id: str, call: str, folder: Path) -> Any:
    """Push a Space of a model, and call a function of its app."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'blip-recipe[demo]'")
    run_checked("blip_recipe.space", model_id, "--repo_id", f"{model_id}-space", env=hub.environment())
    space = write_space(hub, f"{model_id}-space", folder / "space")
    code = (
        f"import json, sys\nfrom PIL import Image\nsys.path.insert(0, '.')\nimport app\nprint(json.dumps(app.{call}))"
    )
    done = run_code(code, cwd=space, env=hub.environment(home=folder / "home"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_app_of_an_answerer_answers(hub: HubServer, picture: Path, tmp_path: Path) -> None:
    from blip_recipe import answer_pipeline

    folder = save_answerer(tmp_path / "answerer", generation_max_length=6)
    hub.publish_model("lab/answerer", folder)
    question = "what colour is the small cat"
    found = run_app(hub, "lab/answerer", f"answer(Image.open({str(picture)!r}), {question!r})", tmp_path)
    assert found == answer_pipeline(folder, device="cpu")(image=str(picture), question=question)[0]["answer"]


def test_the_app_of_a_matcher_ranks_texts(hub: HubServer, picture: Path, tmp_path: Path) -> None:
    from blip_recipe.models.matching import Matcher

    model, processor = build_retriever()
    model.save_pretrained(tmp_path / "matcher")
    save_processor(processor, tmp_path / "matcher")
    hub.publish_model("lab/matcher", tmp_path / "matcher")
    texts = ["a dog", "two cats", "a red square on a blue ground"]
    call = f"match(Image.open({str(picture)!r}), {chr(10).join(texts)!r})"
    found = run_app(hub, "lab/matcher", call, tmp_path)
    matcher = Matcher.load(str(tmp_path / "matcher"), device="cpu")
    (expected,) = matcher.match([matcher.preprocess(str(picture))], [texts])
    assert dict(found) == pytest.approx(dict(zip(texts, expected, strict=True)), abs=1e-4)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)


def test_an_adapter_needs_peft(hub: HubServer, captioner: Path, picture: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", "lab/captioner", base_directory=captioner, generation_max_length=12)
    hub.publish_model("lab/adapter", folder)
    found = run_app(hub, "lab/adapter", f"caption(Image.open({str(picture)!r}))", tmp_path)
    assert isinstance(found, str)
    assert found
    assert b"peft" in hub.files("lab/adapter-space", kind="space")["requirements.txt"]


def test_a_private_model_gets_a_private_space(hub: HubServer, captioner: Path) -> None:
    hub.publish_model("lab/secret", captioner, private=True)
    done = run_checked("blip_recipe.space", "lab/secret", "--repo_id", "lab/secret-space", env=hub.environment())
    assert hub.repositories["space", "lab/secret-space"].private
    assert "add a secret HF_TOKEN" in done.stderr


def test_what_cannot_become_a_space_is_explained(hub: HubServer, captioner: Path, tmp_path: Path) -> None:
    own = save_captioner(tmp_path / "own", prompt="")
    hub._publish("space", "lab/mine", {"app.py": b"print()", "README.md": b"---\nsdk: gradio\n---\n"})
    hub.publish_model("library/captioner", captioner)
    cases: list[tuple[tuple[str | Path, ...], dict[str, str], int, str]] = [
        ((own, *SPACE), hub.environment(), 2, "was not pushed to the Hub"),
        (("lab/nothing", *SPACE), hub.environment(), 2, "The model lab/nothing is not on the Hub"),
        (("lab/captioner", "--repo_id", "a/b/c"), hub.environment(), 2, "--repo_id is 'a/b/c'"),
        (("lab/captioner", "--repo_id", "lab/mine"), hub.environment(), 2, "exists with an app.py"),
        (("lab/captioner", "--repo_id", "strangers/x"), hub.environment(), 3, "is not a member of strangers"),
        (("lab/captioner", *SPACE), hub.environment(READ_TOKEN), 3, "has only read access"),
    ]
    for arguments, env, code, expected in cases:
        done = run_module("blip_recipe.space", *arguments, env=env)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done.stderr)
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    done = run_checked("blip_recipe.space", "library/captioner", "--repo_id", "lab/theirs", env=hub.environment())
    assert "The card of library/captioner has no link to the Space" in done.stderr


def test_a_refusal_is_final(hub: HubServer, captioner: Path) -> None:
    hub.inject("POST .*/spaces/lab/refused/commit/", status=403, times=5)
    done = run_module("blip_recipe.space", "lab/captioner", "--repo_id", "lab/refused", env=hub.environment())
    hub.faults.clear()
    assert done.returncode == 3, done.stderr
    assert "denies access" in done.stderr
    assert len(hub.requested("POST .*/spaces/lab/refused/commit/")) == 1
