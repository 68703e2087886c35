"""Kill a run at random moments, start the same command again, and compare what is left with a run that nobody killed.

    python tests/kills.py --kills 50 --seed 0 --output build/kills.json

Each run is killed (SIGKILL) several times, at its start, in evaluations, while checkpoints are written, between steps,
while the model and the card are saved, and while it is pushed; in between it is asked to stop as batch systems do
(SIGTERM, SIGUSR1); then it may end. Weights must be equal to the byte, and scores, curves and captions too; the Hub
must have one commit of exactly these files. Runs take turns: all weights or a LoRA adapter, with workers that read
pictures or without, always with dropout, augmentation, gradient accumulation, an uneven last step and an end within an
epoch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import CHECKOUT, Process, start_module
from hub_server import HubServer

BASE = "lab/base"
SPLITS = {"train": 22, "validation": 4, "test": 4}
BATCHES = SPLITS["train"] // 2
EVERY = 3
"""Steps between evaluations, and between checkpoints."""
RECIPE: dict[str, Any] = {
    "model_name_or_path": BASE,
    "train_split": "train",
    "eval_split": "validation",
    "test_split": "test",
    "captions_per_image": 1,
    "metrics": ["exact_match"],
    "generation_num_beams": 1,
    "generation_max_length": 8,
    "num_train_epochs": 3.5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 0.001,
    "eval_strategy": "steps",
    "eval_steps": EVERY,
    "save_strategy": "steps",
    "save_steps": EVERY,
    "load_best_model_at_end": True,
    "logging_steps": 1,
    "disable_tqdm": True,
    "push_to_hub": True,
}
KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1}}
TIMINGS = re.compile(r"_runtime$|_per_second$|_preparation_time$|_wait_share$")


@dataclass
class Attempt:
    """One start of the command, watched from outside."""

    process: Process
    log: Path
    output_dir: Path
    hub: HubServer
    repo_id: str
    requests_before: int
    started: float = field(default_factory=time.time)

    def says(self, expression: str) -> bool:
        """Whether it has logged something."""
        return re.search(expression, self.log.read_text(errors="replace")) is not None

    def evaluates(self) -> bool:
        """Whether it has logged the loss of a step after which there is an evaluation, and not its scores."""
        last = self.log.read_text(errors="replace").rpartition("{'loss'")[2]
        epoch = re.search(r"'epoch': '([\d.]+)'}", last)
        if epoch is None or "eval_loss" in last:
            return False
        done, within = divmod(float(epoch[1]), 1)
        return (int(done) * math.ceil(BATCHES / 2) + math.ceil(within * BATCHES / 2 - 0.01)) % EVERY == 0

    def writes(self, name: str) -> bool:
        """Whether it has made or renewed a file or directory of its own."""
        path = self.output_dir / name
        return path.exists() and path.stat().st_mtime >= self.started - 0.01

    def asks(self, expression: str) -> bool:
        """Whether it has sent the Hub a request."""
        return any(re.search(expression, str(each)) for each in self.hub.requests[self.requests_before :])


@dataclass(frozen=True)
class Phase:
    """When to kill: what shows that a phase has begun, for how long it is going on (seconds, about), and how."""

    begun: Callable[[Attempt], bool]
    lasts: float
    signal: signal.Signals = signal.SIGKILL


PHASES = {
    "start": Phase(lambda attempt: True, 6.0),
    "baseline": Phase(lambda attempt: attempt.says("Scoring the untouched"), 0.6),
    "stop in a step": Phase(lambda attempt: attempt.says("{'loss'"), 0.3, signal.SIGTERM),
    "step": Phase(lambda attempt: attempt.says("{'loss'"), 0.4),
    "stop in an evaluation": Phase(Attempt.evaluates, 0.1, signal.SIGUSR1),
    "evaluation": Phase(Attempt.evaluates, 0.2),
    "checkpoint": Phase(lambda attempt: attempt.writes(".saving"), 0.06),
    "end of training": Phase(lambda attempt: attempt.says("'train_loss'"), 0.3),
    "final scores": Phase(lambda attempt: attempt.says("Scoring the finished"), 0.4),
    "card": Phase(lambda attempt: attempt.writes("test_results.json"), 1.5),
    "upload": Phase(lambda attempt: attempt.asks(r"POST .*(/repos/create|/preupload/|/info/lfs)"), 0.05),
    "commit": Phase(lambda attempt: attempt.asks("POST .*/commit/"), 0.02),
    "check of the published": Phase(
        lambda attempt: attempt.asks("/resolve/.*/model.safetensors|/resolve/.*/config"), 0.5
    ),
}
IN_TRAINING = ("step", "evaluation", "checkpoint")
STOPS = ("stop in a step", "stop in an evaluation")
LATE = ("end of training", "final scores", "card", "upload", "commit", "check of the published")
FIVE = ("checkpoint", "evaluation", "step", "end of training", "upload")
"""Phases of a series of five kills."""


def plan(kills: int, rng: random.Random) -> list[str]:
    """Which phases a run is killed in, at most `kills` times, in the order in which it comes to them."""
    if kills == len(FIVE):
        return list(FIVE)
    middle = [*2 * IN_TRAINING, *STOPS]
    rng.shuffle(middle)
    phases = ["start", "baseline", *middle, *LATE]
    while count_kills(Counter(phases)) > kills:
        phases.pop()
    return phases


def count_kills(phases: Counter[str]) -> int:
    """How many of the signals cannot be answered."""
    return sum(times for phase, times in phases.items() if PHASES[phase].signal == signal.SIGKILL)


def write_pictures(folder: Path) -> None:
    """An imagefolder of drawn squares."""
    from coco import captions_of, picture

    numbers = itertools.count()
    for split, size in SPLITS.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for number in itertools.islice(numbers, size):
            (folder / split / f"{number:04}.png").write_bytes(picture(number)["bytes"])
            lines.append(json.dumps({"file_name": f"{number:04}.png", "captions": captions_of(number)}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def publish_base(hub: HubServer, folder: Path) -> None:
    """A tiny BLIP with the dropout of the real one."""
    import torch
    from captioners import GAIN
    from coco import captions_of

    from blip_recipe.captioning.tiny import build_tiny_captioner
    from blip_recipe.models.processors import save_processor

    torch.manual_seed(0)
    model, processor = build_tiny_captioner([caption for number in range(12) for caption in captions_of(number)])
    model.config.text_config.hidden_dropout_prob = model.config.text_config.attention_probs_dropout_prob = 0.1
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    save_processor(processor, folder)
    hub.publish_model(BASE, folder)


class Runs:
    """Starts runs of one recipe against one Hub in folders of one place."""

    def __init__(self, hub: HubServer, place: Path) -> None:
        self.hub, self.place = hub, place
        self.starts = 0

    def start(self, name: str, kind: str, workers: int) -> Attempt:
        """Start the command, or start it again."""
        recipe = self.place / f"{name}.json"
        keys = {
            "dataset_name": str(self.place / "pictures"),
            "output_dir": str(self.place / name),
            "hub_model_id": f"lab/{name}",
            "dataloader_num_workers": workers,
        }
        recipe.write_text(json.dumps(RECIPE | KINDS[kind] | keys))
        log = self.place / f"{name}-{self.starts}.log"
        log.touch()
        self.starts += 1
        before = len(self.hub.requests)
        environment = {**self.hub.environment(), "PYTHONUNBUFFERED": "1"}
        process = start_module("blip_recipe.finetune", recipe, env=environment, cwd=self.place, log=log)
        return Attempt(process, log, self.place / name, self.hub, f"lab/{name}", before)

    def finish(self, attempt: Attempt) -> None:
        """Wait for its good end."""
        if attempt.process.wait() != 0:
            raise SystemExit(
                f"{attempt.log} ended with {attempt.process.returncode}:\n{attempt.log.read_text()[-4000:]}"
            )

    def run_with_kills(self, name: str, kind: str, workers: int, phases: list[str], rng: random.Random) -> Counter[str]:
        """Run to the end, killed on the way; returns how often it was killed in which phase."""
        killed: Counter[str] = Counter()
        for phase in phases:
            attempt = self.start(name, kind, workers)
            if kill_in(attempt, PHASES[phase], rng):
                killed[phase] += 1
            else:
                # It came to its end before.
                self.finish(attempt)
                break
        self.finish(self.start(name, kind, workers))
        return killed


def kill_in(attempt: Attempt, phase: Phase, rng: random.Random) -> bool:
    """Kill at a random moment of a phase; whether that was before the command ended by itself."""
    while not phase.begun(attempt):
        if attempt.process.poll() is not None:
            return False
        time.sleep(0.001)
    time.sleep(rng.uniform(0, phase.lasts))
    attempt.process.send_signal(phase.signal)
    # Where there is nothing left to save, SIGTERM and SIGUSR1 end a process by themselves.
    return attempt.process.wait() in (-phase.signal, 128 + phase.signal)


def read_result(output_dir: Path) -> dict[str, Any]:
    """What a run leaves, without what it took: weights as bytes, scores, curves and captions."""
    weights = "adapter_model.safetensors" if (output_dir / "adapter_config.json").exists() else "model.safetensors"
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return {
        "weights": (output_dir / weights).read_bytes(),
        "scores": _without_timings(json.loads((output_dir / "all_results.json").read_text())),
        "curves": [_without_timings(entry) for entry in state["log_history"]],
        "best": (state["best_metric"], state["best_global_step"]),
        "captions": (output_dir / "predictions.jsonl").read_bytes(),
    }


def _without_timings(scores: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scores.items() if not TIMINGS.search(key)}


def find_differences(unbroken: Path, output_dir: Path, hub: HubServer, repo_id: str) -> list[str]:
    """What is not as in the unbroken run, or not on the Hub as it is in the directory."""
    result = read_result(output_dir)
    differences = [name for name, value in read_result(unbroken).items() if value != result[name]]
    if len(hub.commits(repo_id)) != 2:
        differences.append(f"{len(hub.commits(repo_id)) - 1} commits")
    published = hub.files(repo_id)
    return differences + [
        f"published {name}" for name, content in published.items() if content != (output_dir / name).read_bytes()
    ]


def run_kills(kills: int, seed: int, place: Path, kinds: list[str]) -> dict[str, Any]:
    """Do it all; returns the figures."""
    rng, began = random.Random(seed), time.time()
    report: dict[str, Any] = {"seed": seed, "kills": 0, "runs": [], "phases": {}}
    with HubServer() as hub:
        write_pictures(place / "pictures")
        publish_base(hub, place / "base")
        runs = Runs(hub, place)
        unbroken = {kind: runs.start(f"unbroken-{kind}", kind, workers=0) for kind in kinds}
        killed: Counter[str] = Counter()
        while count_kills(killed) < kills:
            number = len(report["runs"])
            name, kind = f"run-{number}", kinds[number % len(kinds)]
            workers = (2, 0)[number // len(kinds) % 2]
            phases = plan(kills - count_kills(killed), rng)
            here = runs.run_with_kills(name, kind, workers, phases, rng)
            runs.finish(unbroken[kind])
            differences = find_differences(unbroken[kind].output_dir, place / name, hub, f"lab/{name}")
            killed += here
            run = {"kind": kind, "workers": workers, "phases": dict(here), "differences": differences}
            report["runs"].append(run | {"kills": count_kills(here)})
            print(f"{name}: {report['runs'][-1]}", file=sys.stderr)
    equal = sum(run["kills"] for run in report["runs"] if not run["differences"])
    return report | {
        "kills": count_kills(killed),
        "kills_without_difference": equal,
        "phases": dict(killed),
        "minutes": round((time.time() - began) / 60, 1),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--place", type=Path, help="where the runs are kept; default: a folder that is deleted")
    parser.add_argument("--output", type=Path, default=Path("build/kills.json"))
    options = parser.parse_args()
    sys.path.insert(0, str(CHECKOUT))
    with tempfile.TemporaryDirectory(prefix="kills_") as folder:
        place = options.place or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        report = run_kills(options.kills, options.seed, place.resolve(), options.kinds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['kills_without_difference']} of {report['kills']} kills left no difference ({options.output})")
    sys.exit(report["kills_without_difference"] != report["kills"])


if __name__ == "__main__":
    main()
