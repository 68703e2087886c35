"""Upload checkpoints to a branch of the Hub repository during training."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.hub.published_files import MODEL_FILES, check_contents, matches_any
from blip_recipe.hub.publishing import commit_to_branch
from blip_recipe.hub.retries import WAITS_CHECKPOINT, explain, with_retries

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

BRANCH = "checkpoints"
"""The branch for checkpoints. `main` holds only finished models."""

WAITING = 2
"""Maximum number of checkpoint copies waiting for upload. Training waits if there are more."""


class CheckpointUploader(TrainerCallback):
    """Commit each saved checkpoint to the branch `checkpoints`, from a background thread.

    Each commit has the weights, the processor, the recipe and Trainer's state of one checkpoint, and replaces the files
    of the previous one. The branch's history keeps all checkpoints. Optimizer and random states are pickles and never
    published. A failed upload is logged as a warning and does not stop the training.

    Args:
        output_dir: The directory with Trainer's checkpoints.
        repo_id: `namespace/name`.
        recipe: The recipe of the run.
        private: Whether to create the repository as private; `None` uses the namespace's default.
        api: The Hub client.
        waits: Seconds between attempts to upload a checkpoint.
    """

    def __init__(
        self,
        output_dir: Path,
        repo_id: str,
        recipe: dict[str, Any],
        *,
        private: bool | None,
        api: HfApi,
        waits: Sequence[float] = WAITS_CHECKPOINT,
    ) -> None:
        self.output_dir, self.repo_id, self.recipe = output_dir, repo_id, recipe
        self.private, self.api, self.waits = private, api, waits
        self.copies = output_dir / ".checkpoint_uploads"
        self.saved, self.failed = 0, 0
        self.uploads: set[Future[None]] = set()

    def __enter__(self) -> CheckpointUploader:
        # Copies left over from a killed run.
        shutil.rmtree(self.copies, ignore_errors=True)
        self.executor = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all uploads (after an error, only for the current one), and log how many succeeded."""
        self.executor.shutdown(cancel_futures=kind is not None)
        shutil.rmtree(self.copies, ignore_errors=True)
        where = f"the branch {BRANCH} of {self.api.endpoint}/{self.repo_id}"
        if self.failed:
            logger.warning("%d of %d checkpoints did not reach %s", self.failed, self.saved, where)
        else:
            logger.info("%d of %d checkpoints reached %s", self.saved, self.saved, where)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Upload the checkpoint that the run resumes from, in case the previous run did not."""
        if state.global_step and (self.output_dir / f"checkpoint-{state.global_step}").is_dir():
            self._submit(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Upload the new checkpoint."""
        self._submit(state.global_step)

    def _submit(self, step: int) -> None:
        """Copy a checkpoint and upload the copy in the background. Trainer may delete the original at the next save."""
        self.saved += 1
        while len(self.uploads) >= WAITING:
            self.uploads -= wait(self.uploads, return_when=FIRST_COMPLETED).done
        try:
            copy = self._copy(step)
        except OSError as error:
            shutil.rmtree(self.copies / f"checkpoint-{step}", ignore_errors=True)
            self._report(step, f"It cannot be copied: {error}.")
            return
        upload = self.executor.submit(self._upload, step, copy)
        upload.add_done_callback(partial(self._note, step))
        self.uploads.add(upload)

    def _copy(self, step: int) -> Path:
        """Copy the published files of a checkpoint, and add the recipe."""
        name = f"checkpoint-{step}"
        copy = self.copies / name
        copy.mkdir(parents=True)
        for path in (self.output_dir / name).iterdir():
            if matches_any(path.name, MODEL_FILES):
                shutil.copyfile(path, copy / path.name)
        state = read_json(self.output_dir / name / TRAINER_STATE_NAME)
        if best := state.get("best_model_checkpoint"):
            # Do not publish the local path.
            state["best_model_checkpoint"] = Path(best).name
        write_json(copy / TRAINER_STATE_NAME, state)
        write_json(copy / "recipe.json", self.recipe)
        return copy

    def _upload(self, step: int, copy: Path) -> None:
        files = {path.name: path for path in sorted(copy.iterdir())}
        commit = partial(
            commit_to_branch,
            files,
            self.repo_id,
            BRANCH,
            private=self.private,
            message=f"Checkpoint at step {step}",
            api=self.api,
        )
        try:
            check_contents(files, self.api)
            with_retries(commit, self.waits)
        finally:
            shutil.rmtree(copy)

    def _note(self, step: int, upload: Future[None]) -> None:
        if upload.cancelled():
            self._report(step, "The training ended first.")
        elif error := upload.exception():
            self._report(step, explain(error, self.api))

    def _report(self, step: int, reason: str) -> None:
        self.failed += 1
        logger.warning("The checkpoint at step %d was not uploaded. %s", step, reason)
