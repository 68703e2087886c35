"""Checkpoints on their way to a branch of the repository, while the training goes on."""

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
"""The branch that checkpoints are committed to; `main` holds finished models alone."""

WAITING = 2
"""Copies of checkpoints on the disk at a time; with more to upload, the training waits."""


class CheckpointUploader(TrainerCallback):
    """Commits each saved checkpoint to the branch `checkpoints`, one commit each, from a thread beside the training.

    A commit holds the weights, the processor, the recipe and Trainer's state, and replaces the one before it: the top
    of the branch is the newest checkpoint, its history has them all. What would be needed to resume (optimizer and
    random states) are pickles, and never published. A checkpoint that does not arrive is a warning, and is counted in
    the line at the end; it does not end the training.

    Args:
        output_dir: Where Trainer saves its checkpoints.
        repo_id: `namespace/name`.
        recipe: The recipe to run again.
        private: Whether a repository that is made now is private; `None` is the namespace's default.
        api: The client.
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
        # What a run that was killed had not uploaded yet.
        shutil.rmtree(self.copies, ignore_errors=True)
        self.executor = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the uploads, or after an error for the current one alone, and say how many arrived."""
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
        """Have the checkpoint that is resumed from uploaded, if the run that saved it died before."""
        if state.global_step and (self.output_dir / f"checkpoint-{state.global_step}").is_dir():
            self._submit(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the new checkpoint uploaded."""
        self._submit(state.global_step)

    def _submit(self, step: int) -> None:
        """Copy a checkpoint, which Trainer may delete at any later save, and let the thread upload the copy."""
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
        """Copy what is published of a checkpoint, with the recipe."""
        name = f"checkpoint-{step}"
        copy = self.copies / name
        copy.mkdir(parents=True)
        for path in (self.output_dir / name).iterdir():
            if matches_any(path.name, MODEL_FILES):
                shutil.copyfile(path, copy / path.name)
        state = read_json(self.output_dir / name / TRAINER_STATE_NAME)
        if best := state.get("best_model_checkpoint"):
            # Where the run was written is nobody's business but the user's.
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
            self._report(step, "The training ended before.")
        elif error := upload.exception():
            self._report(step, explain(error, self.api))

    def _report(self, step: int, reason: str) -> None:
        self.failed += 1
        logger.warning("The checkpoint at step %d was not uploaded. %s", step, reason)
