"""A forked process behaves as one that starts cold."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import forked
import pytest
from commands import run_code, run_module, start_module
from forked import Forked
from hub_server import HubServer

pytestmark = pytest.mark.skipif(not forked.WORKS, reason="processes are not forked here")

SEEN = """
import json, multiprocessing, os, sys
import datasets, huggingface_hub
from huggingface_hub import HfApi
import blip_recipe
SEEN = object()
api = huggingface_hub.hf_api.api
print(json.dumps({
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "children": multiprocessing.get_start_method(),
    "environment": sorted(each for each in os.environ.items() if each[0].startswith(("HF_", "OMP_", "PYTHON"))),
    "hub": [api.endpoint, HfApi().endpoint, huggingface_hub.constants.HF_HUB_CACHE, huggingface_hub.get_token()],
    "offline": [huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE],
    "datasets": [datasets.config.HF_ENDPOINT, str(datasets.config.HF_DATASETS_CACHE)],
    "whoami": api.whoami()["name"],
    "package": blip_recipe.__file__,
    "main": [__name__, sys.modules["__main__"].__name__, SEEN is vars(sys.modules["__main__"])["SEEN"]],
}))
print("complaint", file=sys.stderr)
"""


def test_it_sees_the_environment_the_arguments_and_the_hub_of_a_cold_start(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(home=tmp_path / "home")
    forked, cold = (run_code(SEEN, "a b", tmp_path, env=env, cwd=tmp_path, cold=cold) for cold in (False, True))
    assert forked.returncode == 0, forked.stderr
    assert json.loads(forked.stdout) == json.loads(cold.stdout)
    assert json.loads(cold.stdout)["hub"][0] == hub.url
    assert forked.stderr == cold.stderr == "complaint\n"


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "sys.exit('a reason')", "1 / 0", "os.kill(os.getpid(), signal.SIGKILL)", "pass"]
)
def test_it_ends_as_a_cold_start_does(end: str, tmp_path: Path) -> None:
    code = f"""
import atexit, os, signal, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("begun", flush=True)
{end}
"""
    forked, cold = (run_code(code, cwd=tmp_path, cold=cold) for cold in (False, True))
    assert (forked.returncode, forked.stdout) == (cold.returncode, cold.stdout)
    assert ("a reason" in forked.stderr) == ("a reason" in cold.stderr)
    assert ("ZeroDivisionError" in forked.stderr) == ("ZeroDivisionError" in cold.stderr)


def test_a_command_says_the_same(tmp_path: Path) -> None:
    forked, cold = (run_module("blip_recipe.push", tmp_path, "--repo_id", "a/b", cold=cold) for cold in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert forked.returncode == 2


def test_it_answers_signals(tmp_path: Path) -> None:
    waits = "import time; print('waits', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    process = Forked(["-c", waits], env=dict(os.environ), cwd=tmp_path, stdout=log, stderr=log)
    while not log.exists() or "waits" not in log.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert start_module("blip_recipe.push", log=Path(os.devnull)).wait(timeout=60) == 2
