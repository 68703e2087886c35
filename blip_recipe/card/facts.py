"""The facts that a model card may state. Plain values, each measured or read in the run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi

from blip_recipe.hub.retries import HUB_ERRORS
from blip_recipe.models.decoding import DecodingSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskWords:
    """A task, and how it is spoken of.

    Attributes:
        name: As recipes name it.
        row, text: What a row of data is, and what is learnt of it, in the singular.
        output: What the model gives, in the singular.
        title: What a card's title begins with.
        label: The task as the Hub's leaderboards name it.
        pipeline_tag: The Hub's own name for it, where it has one.
        tag: What people look for.
        command: The command line that uses a finished model, after `python -m blip_recipe.` and with `{model}` in it.
        lora_layers: The layers that LoRA adapts by default.
        key: The column of rows that names them in predictions.
        texts: The column of rows with what is learnt, a list in each.
    """

    name: str
    row: str
    text: str
    output: str
    title: str
    label: str
    pipeline_tag: str | None
    tag: str
    command: str
    lora_layers: str
    key: str = "image_id"
    texts: str = "captions"


EMBEDDED: dict[str, dict[str, str]] = {"tiny": {}, "shapes": {"language": "en"}}
"""The model and the data set that come with the package, with what a card would say of them."""

Kind = Literal["full", "lora", "merged"]

PLACEHOLDER = "ORG/NAME"
"""The repository that the card of a run without `push_to_hub` speaks of; `push` puts the real one in."""

UNKNOWN = "unknown"


@dataclass(frozen=True)
class OriginFacts:
    """A base model or a data set.

    Attributes:
        name: Hub id; without `on_hub` the last name of a local one, or `tiny` or `shapes`, which come with the package.
        on_hub: Whether everybody can get it by that name.
        revision: Its commit, where it is known.
        license: As its own card names it, or `unknown`.
    """

    name: str
    on_hub: bool
    revision: str | None
    license: str


@dataclass(frozen=True)
class SplitFacts:
    """A split that the run read.

    Attributes:
        role: `train`, `eval` or `test`.
        name: Its name in the data set.
        images, captions: How many were read.
        limited: Whether the recipe asked for the first ones only.
    """

    role: str
    name: str
    images: int
    captions: int
    limited: bool


@dataclass(frozen=True)
class ScoreFacts:
    """A score of the finished model: its name in results, its label, its value and the untouched base model's value."""

    name: str
    label: str
    value: float
    baseline: float | None


@dataclass(frozen=True)
class SampleFacts:
    """A scored caption: `title` is `best`, `median` or `worst`; its picture is in `SAMPLE_FILES`."""

    title: str
    score: str
    caption: str
    references: list[str]


@dataclass(frozen=True)
class ResultFacts:
    """What was measured of the finished model.

    Attributes:
        scored: The split with the role whose scores follow; None where the recipe names neither `test` nor `eval`.
        scores: Loss and scores.
        tokenization: How captions were tokenized before they were scored.
        distinct_captions: How many different captions the model gave for the images of `scored`.
        samples: Best, median and worst caption.
        ranked_by: Label of the score that they were ranked by; None where no image has a score.
        habits: What self-critical training may spoil, measured as the scores are; empty after any other.
    """

    scored: SplitFacts | None
    scores: list[ScoreFacts]
    tokenization: str
    distinct_captions: int
    samples: list[SampleFacts]
    ranked_by: str | None
    habits: list[ScoreFacts] = field(default_factory=list)


@dataclass(frozen=True)
class EnergyFacts:
    """Electricity of the training as codecarbon measured it: kWh, kg of CO2-equivalent, the country of the mix."""

    kwh: float
    co2_kg: float
    country: str


@dataclass(frozen=True)
class TrainingFacts:
    """How the weights came about.

    Attributes:
        parameters, trained_parameters: How many there are, and how many were trained.
        quantization: Precision of the frozen base while training, `8bit` or `4bit`; None is full.
        selected_by: What the best checkpoint was chosen by; None where the last one was kept.
        selected_step, steps: The step of the published weights, and how many there were.
        settings: What the training depended on, by label.
        hardware: What it ran on.
        seconds: Wall-clock time, evaluations within included, over all its sessions.
        peak_memory: Most bytes that one process held: of the accelerator, or else of main memory.
        energy: What it used; None where that was not measured.
        date: The day it was finished (`2026-01-31`).
        versions: Version by package.
    """

    parameters: int
    trained_parameters: int
    quantization: str | None
    selected_by: str | None
    selected_step: int
    steps: int
    settings: dict[str, str]
    hardware: str
    seconds: float
    peak_memory: int | None
    energy: EnergyFacts | None
    date: str
    versions: dict[str, str]


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card may say. Plain values, each measured or read in the run; no local path, no secret.

    Attributes:
        kind: All weights, an adapter, or an adapter merged into its base.
        repo_id: `namespace/name` that the card speaks of, or `PLACEHOLDER`.
        base, dataset: What the model was made from.
        dataset_config: The data set's configuration, where there is one.
        language: ISO code of the captions; None where nothing tells.
        splits: What was read, by role.
        decoding: How texts are generated; None where none are.
        skipped_rows: How many rows could not be used, and were left out as the recipe asked.
        task: What the model learnt, and how it is spoken of.
    """

    kind: Kind
    repo_id: str
    base: OriginFacts
    dataset: OriginFacts
    dataset_config: str | None
    language: str | None
    splits: list[SplitFacts]
    skipped_rows: int
    decoding: DecodingSettings | None
    results: ResultFacts
    training: TrainingFacts
    task: TaskWords

    def score(self, name: str) -> ScoreFacts | None:
        """The score of this name, if the run has it."""
        return next((each for each in self.results.scores if each.name == name), None)


@dataclass(frozen=True)
class Source:
    """Where a base model or a data set comes from.

    Attributes:
        name: As the recipe names it: a Hub id, a local path, or what is embedded.
        revision: The commit that was read, where it is known.
        card: Metadata of its own card on the Hub (`license`, `language`, ...); empty where there is none.
        is_own: Whether it is the user's own, by a name that leads nowhere.
    """

    name: str
    revision: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    is_own: bool = False

    @property
    def on_hub(self) -> bool:
        """Whether everybody can get it by this name."""
        return not self.is_own and self.name not in EMBEDDED and not Path(self.name).expanduser().exists()

    @property
    def license(self) -> str:
        """The licence that its card names."""
        named = self.card.get("license") or UNKNOWN
        return named if isinstance(named, str) else ", ".join(named)

    def facts(self) -> OriginFacts:
        """What a card says of it: not the directory that a local one lies in, which is nobody's business."""
        shown = self.name if self.on_hub else Path(self.name).expanduser().resolve().name
        return OriginFacts(shown, self.on_hub, self.revision, self.license)


def read_source(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> Source:
    """Look up the commit and the card of a Hub repository; a local or embedded name is taken as it is.

    A repository that cannot be asked is a `Source` without them, and a warning says so: a finished training is worth a
    card that names no licence.
    """

    source = Source(name, revision, EMBEDDED.get(name, {}))
    if not source.on_hub:
        return source
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision)
    except HUB_ERRORS as error:
        logger.warning("The card of %s cannot be read, so ours names no licence for it: %s", name, error)
        return source
    return Source(name, info.sha or revision, info.card_data.to_dict() if info.card_data else {})


@dataclass(frozen=True)
class Sources:
    """What a run was made from.

    Attributes:
        base: The model that was fine-tuned.
        dataset: The data.
        dataset_config: The data set's configuration, where there is one.
        splits: Names of splits by role (`train`, `eval`, `test`).
        limited: Roles of which only the first rows were read.
        columns: The columns of texts, where they were named.
        skipped_rows: How many rows could not be used.
        counts: Rows and texts of splits by role, where they are known already.
    """

    base: Source
    dataset: Source
    dataset_config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    limited: Collection[str] = ()
    columns: Sequence[str] = ()
    skipped_rows: int = 0
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
