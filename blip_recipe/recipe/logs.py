"""Set up logging to stderr, at the level of Trainer's arguments, and check the trackers."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import datasets
import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.training.training_arguments import BlipTrainingArguments


def set_up_logs(training: BlipTrainingArguments) -> None:
    """Log at `log_level` (default: information on the main process, warnings on the others).

    Raises:
        RecipeError: A tracker of `report_to` is not installed, or there is none of this name.
    """
    check_trackers(training)
    level = training.get_process_log_level()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("blip_recipe").setLevel(logging.INFO if training.should_log else level)
    transformers.utils.logging.set_verbosity(level)
    datasets.utils.logging.set_verbosity_warning()


def check_trackers(training: BlipTrainingArguments) -> None:
    """Check that the trackers of `report_to` are installed, before the training imports them."""
    installed = get_available_reporting_integrations()
    for name in training.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise RecipeError(f"report_to names {name!r}, which is no tracker: expected some of {known}.")
        if name not in installed:
            raise RecipeError(f"report_to names {name!r}, which is not installed: install it, or leave it out.")
