"""Set up logging to stderr, at the level of Trainer's arguments."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import datasets
import transformers

if TYPE_CHECKING:
    from blip_recipe.training.training_arguments import BlipTrainingArguments


def set_up_logs(training: BlipTrainingArguments) -> None:
    """Log at `log_level` (default: information on the main process, warnings on the others)."""
    level = training.get_process_log_level()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("blip_recipe").setLevel(logging.INFO if training.should_log else level)
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity_warning()
