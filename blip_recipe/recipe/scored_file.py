"""Score a file of captions, without torch unless a metric has a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.arguments import CaptionArguments
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scores import MAKERS, PICTURE_METRICS
from blip_recipe.recipe.arguments import EvaluateOptions
from blip_recipe.recipe.checks import check_writable
from blip_recipe.recipe.parser import RecipeParser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blip_recipe.card.facts import TaskWords
    from blip_recipe.card.report import ReportFacts
    from blip_recipe.metrics.scores import SetScorer

FILE_KEYS = {
    *("predictions", "references", "subset", "output_dir", "metrics", "score_tokenizer", "report"),
    *("bootstrap_resamples", "seed", "image_root"),
}
"""Keys that scoring a file of captions needs. With these alone, and metrics of words, torch is not imported."""


@dataclass
class FileArguments(CaptionArguments):
    """The arguments of captioning that scoring a file needs."""

    output_dir: str = field(default="outputs/evaluate", metadata={"help": "Directory of the scores."})
    seed: int = field(default=42, metadata={"help": "Seed of the resamples."})
    image_root: str | None = field(default=None, metadata={"help": "Folder where relative names of pictures start."})


def read_file_arguments(argv: Sequence[str]) -> tuple[EvaluateOptions, FileArguments] | None:
    """Parse a command line that names a file of captions and has only `FILE_KEYS`; None for any other.

    Raises:
        RecipeError: A value has the wrong type or is impossible.
    """
    names = [each[2:].partition("=")[0].replace("-", "_") for each in argv if each.startswith("--")]
    if "predictions" not in names or not set(names) <= FILE_KEYS or not argv[0].startswith("--"):
        return None
    parser = RecipeParser([EvaluateOptions, FileArguments], add_help=False, allow_abbrev=False)
    try:
        options, arguments, unknown = parser.parse_args_into_dataclasses(
            list(argv), return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if unknown or not options.predictions or any(name in MAKERS for name in arguments.metrics):
        return None
    check_writable(Path(arguments.output_dir))
    return options, arguments


def score_file(options: EvaluateOptions, arguments: Any, image_root: str | None) -> None:
    """Score the captions of `--predictions` against `--references`.

    Args:
        options: The files.
        arguments: Metrics, tokenizer, resamples, and where to write.
        image_root: Where relative names of pictures start.
    """
    from blip_recipe.captioning.words import WORDS
    from blip_recipe.metrics import CaptionScorer
    from blip_recipe.metrics.intervals import interval_scores
    from blip_recipe.metrics.pairing import find_pictures, pair_files

    files = [Path(str(options.predictions)), Path(str(options.references or options.predictions))]
    paired = pair_files(*files, subset=options.subset)
    predictions, references = paired.predictions, paired.references
    if options.subset:
        print(f"scored {len(references):,} of {paired.images:,} images with references")
    images = None
    if any(name in PICTURE_METRICS for name in arguments.metrics):
        images = find_pictures(paired.names, Path(image_root or "."), " and ".join(map(str, files)))
    tokenizer: Any = getattr(arguments, "score_tokenizer", "ptb")
    with CaptionScorer(arguments.metrics, tokenizer=tokenizer, scorers=load_scorers(arguments)) as scorer:
        resamples, seed = arguments.bootstrap_resamples, arguments.seed
        scores = scorer.score(predictions, references, images=images, resamples=resamples, seed=seed)
    metrics = {f"eval_{name}": value for name, value in (scores.corpus | interval_scores(scores.intervals)).items()}
    records = scores.records(predictions, references)
    write_scores(arguments, metrics, records)
    folders = dict.fromkeys([Path(image_root or "."), Path(), *(file.parent for file in files)])
    facts = page_facts(WORDS, metrics, str(options.predictions))
    write_page(arguments, records, facts, paired.names, list(folders))


def load_scorers(arguments: Any) -> list[SetScorer]:
    """Load what the metrics need beside words; nothing for the metrics of words."""
    if not any(name in MAKERS for name in arguments.metrics):
        return []

    from blip_recipe.training.score_models import ScoreModels, build_scorers

    return build_scorers(arguments, ScoreModels.load(arguments, arguments.device))


def write_scores(arguments: Any, results: dict[str, float], records: list[dict[str, Any]]) -> None:
    """Write `all_results.json` and `predictions.jsonl` to `output_dir`, and print the scores."""
    from blip_recipe.data.storage import PREDICTIONS_FILE, write_json, write_predictions
    from blip_recipe.metrics.intervals import ENDS, is_end

    output_dir = Path(str(arguments.output_dir))
    recorded = results | arguments.score_settings()
    write_json(output_dir / "all_results.json", dict(sorted(recorded.items())))
    write_predictions(output_dir / PREDICTIONS_FILE, records)
    shown = ("loss", *arguments.scores())
    ends = {key for key in results if is_end(key, results)}
    names = [key.removeprefix("eval_") for name in shown for key in results if is_score(key, f"eval_{name}")]
    names = [name for name in names if f"eval_{name}" not in ends]
    width = max([12, *(len(name) + 2 for name in names)])
    for name in names:
        low, high = (results.get(f"eval_{name}_{end}") for end in ENDS)
        interval = "" if low is None else f"  ({low:.4f} to {high:.4f})"
        print(f"{name:<{width}}{results[f'eval_{name}']:.4f}{interval}")


def is_score(key: str, score: str) -> bool:
    """Whether a key is that of a score, or of the same score of a group: `eval_cider`, `eval_cider_in_domain`."""
    return key == score or key.startswith(f"{score}_")


def write_page(
    arguments: Any,
    records: list[dict[str, Any]],
    facts: ReportFacts,
    names: Mapping[Any, Sequence[str]],
    folders: Sequence[Path],
) -> None:
    """Write `report.html` of a file, with the pictures that are in one of `folders`."""
    from blip_recipe.captioning.words import WORDS
    from blip_recipe.card.report import files_of, remove_report, write_report

    output_dir = Path(str(arguments.output_dir))
    if arguments.report:
        write_report(output_dir, records, WORDS, facts, find_picture=files_of(names, folders))
    else:
        remove_report(output_dir)


def page_facts(words: TaskWords, metrics: dict[str, float], scored: str, data: str | None = None) -> ReportFacts:
    """What stands above the rows of `report.html`; `scored` is the model or the file, `data` the data set."""
    from blip_recipe.card.facts import Source
    from blip_recipe.card.gathering import group_facts, score_facts
    from blip_recipe.card.report import ReportFacts

    named = {"scored": Source(scored).facts().name}
    if data:
        named |= {"data": Source(data).facts().name}
    title = f"{words.title}: {named.get('data', named['scored'])}"
    return ReportFacts(title, list(named.items()), [*score_facts(metrics, "eval"), *group_facts(metrics, "eval")])
