"""The facts of a model card: plain values that were measured or read in the run."""

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
    """The names of a task and its parts in texts.

    Attributes:
        name: The task in recipes.
        row, text: Singular nouns for a row of data and for a target text.
        output: Singular noun for an output of the model.
        title: First words of the card's title.
        label: The task on the Hub's leaderboards.
        pipeline_tag: The Hub's pipeline tag, if it has one.
        tag: A tag for search.
        command: The command line that uses a finished model, after `python -m blip_recipe.`, with `{model}` in it.
        lora_layers: Description of the default layers for LoRA.
        key: The column with the id of a row in predictions.
        texts: The column with the list of target texts.
        references: The field of a prediction with these texts.
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
    references: str = "references"


EMBEDDED: dict[str, dict[str, str]] = {"tiny": {}, "shapes": {"language": "en"}}
"""The embedded model and data set, with their card metadata."""

Kind = Literal["full", "lora", "merged"]

PLACEHOLDER = "ORG/NAME"
"""Repository name in the card of a run without `push_to_hub`. `push` replaces it by the real one."""

UNKNOWN = "unknown"


@dataclass(frozen=True)
class OriginFacts:
    """A base model or a data set.

    Attributes:
        name: The Hub id, the last part of a local path, or an embedded name (`tiny`, `shapes`).
        on_hub: Whether `name` is a Hub id.
        revision: The commit, if it is known.
        license: The licence in its card, or `unknown`.
    """

    name: str
    on_hub: bool
    revision: str | None
    license: str


@dataclass(frozen=True)
class SplitFacts:
    """A split of the run.

    Attributes:
        role: `train`, `eval` or `test`.
        name: Its name in the data set.
        images, captions: Number of images and captions read.
        limited: Whether the recipe uses only the first images.
    """

    role: str
    name: str
    images: int
    captions: int
    limited: bool


@dataclass(frozen=True)
class ScoreFacts:
    """A score.

    Attributes:
        name: Its name in results.
        label: Its name in texts.
        value: Its value.
        baseline: The value of the base model before training.
        interval, baseline_interval: The 95% intervals of both.
        p_value: The two-sided p-value of their difference.
    """

    name: str
    label: str
    value: float
    baseline: float | None
    interval: Sequence[float] | None = None
    baseline_interval: Sequence[float] | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class SampleFacts:
    """A scored caption.

    Attributes:
        title: `best`, `median` or `worst`, the key of its picture in `SAMPLE_FILES`.
        score: The score that ranks it, as text.
        caption: The caption of the fine-tuned model.
        references: The references of its picture.
        before: The caption of the untouched base model, or None if the base was not scored.
    """

    title: str
    score: str
    caption: str
    references: list[str]
    before: str | None = None


@dataclass(frozen=True)
class ResultFacts:
    """The measured results of the finished model.

    Attributes:
        scored: The split of the scores, or None without an `eval` and `test` split.
        scores: Loss and scores.
        tokenization: How captions were tokenized for scoring.
        distinct_captions: Number of different captions for the images of `scored`.
        samples: Best, median and worst caption.
        ranked_by: Label of the score that ranks the samples, or None if images have no scores.
        habits: Properties of captions that self-critical training may degrade; empty for other trainings.
        groups: The scores of each group of images; empty without `group_column`.
        models: The models that scored captions by their pictures, by kind.
    """

    scored: SplitFacts | None
    scores: list[ScoreFacts]
    tokenization: str
    distinct_captions: int
    samples: list[SampleFacts]
    ranked_by: str | None
    habits: list[ScoreFacts] = field(default_factory=list)
    groups: list[ScoreFacts] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnergyFacts:
    """Energy of the training, measured by codecarbon: kWh, kg of CO2-equivalent, and the country of the energy mix."""

    kwh: float
    co2_kg: float
    country: str


@dataclass(frozen=True)
class TrainingFacts:
    """The training of the weights.

    Attributes:
        parameters, trained_parameters: Number of all parameters, and of the trained ones.
        quantization: Quantisation of the frozen base in training, `8bit` or `4bit`, or None.
        selected_by: The metric that chose the best checkpoint, or None if the last one was kept.
        selected_step, steps: The step of the published weights, and the number of steps.
        settings: Training settings by label.
        hardware: The GPUs or the processor.
        seconds: Wall-clock time of all sessions, including evaluations during training.
        peak_memory: Peak memory of a process in bytes, on the accelerator if there is one.
        energy: The energy used, or None if it was not measured.
        date: The last day of the training (`2026-01-31`).
        versions: Versions of packages.
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
    """All facts of a model card, without local paths and secrets.

    Attributes:
        kind: `full` (all weights), `lora` (an adapter) or `merged` (an adapter merged into its base).
        repo_id: The repository's `namespace/name`, or `PLACEHOLDER`.
        base, dataset: The base model and the data set.
        dataset_config: The data set's configuration, if any.
        language: ISO code of the captions, or None if it is unknown.
        splits: The splits of the run.
        decoding: Settings of generation, or None if the model generates no text.
        skipped_rows: Number of rows that were skipped because they could not be used.
        task: The task and its names.
        notes: Sentences on the data: how test images were held out, which texts are cut or changed.
        has_report: Whether `report.html` is published beside the card.
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
    notes: Sequence[str] = ()
    has_report: bool = False

    def score(self, name: str) -> ScoreFacts | None:
        """The score with this name, or None."""
        return next((each for each in self.results.scores if each.name == name), None)


@dataclass(frozen=True)
class Source:
    """The source of a base model or a data set.

    Attributes:
        name: The name in the recipe: a Hub id, a local path or an embedded name.
        revision: The commit, if it is known.
        card: Metadata of its card on the Hub (`license`, `language`, ...), if any.
        is_own: Whether the caller passed it as an object, so `name` cannot be loaded.
    """

    name: str
    revision: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    is_own: bool = False

    @property
    def on_hub(self) -> bool:
        """Whether `name` is a Hub id."""
        return not self.is_own and self.name not in EMBEDDED and not Path(self.name).expanduser().exists()

    @property
    def license(self) -> str:
        """The licence in its card, or `unknown`."""
        named = self.card.get("license") or UNKNOWN
        return named if isinstance(named, str) else ", ".join(named)

    def facts(self) -> OriginFacts:
        """The facts for a card. Only the last part of a local path is shown."""
        shown = self.name if self.on_hub else Path(self.name).expanduser().resolve().name
        return OriginFacts(shown, self.on_hub, self.revision, self.license)


def read_source(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> Source:
    """Look up the commit and the card of a Hub repository. Local and embedded names need no look-up.

    If the look-up fails, a warning is logged and the card names no licence: the training must not be lost.
    """

    source = Source(name, revision, EMBEDDED.get(name, {}))
    if not source.on_hub:
        return source
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision)
    except HUB_ERRORS as error:
        logger.warning("The card of %s cannot be read, so the new card names no licence for it: %s", name, error)
        return source
    return Source(name, info.sha or revision, info.card_data.to_dict() if info.card_data else {})


@dataclass(frozen=True)
class Sources:
    """The base model and the data of a run.

    Attributes:
        base: The model that was fine-tuned.
        dataset: The data set.
        dataset_config: The data set's configuration, if any.
        splits: Names of splits by role (`train`, `eval`, `test`).
        limited: Roles of splits that were limited to their first rows.
        columns: The columns of texts, if the recipe names them.
        skipped_rows: Number of rows that could not be used.
        counts: Numbers of rows and texts by role, if they are known already.
        notes: Sentences on the data, such as how test images were held out.
    """

    base: Source
    dataset: Source
    dataset_config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    limited: Collection[str] = ()
    columns: Sequence[str] = ()
    skipped_rows: int = 0
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()
