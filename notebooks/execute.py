"""Execute the notebooks from top to bottom and save them with their outputs.

python notebooks/execute.py                        # both, one after the other
python notebooks/execute.py finetune_blip.ipynb    # one of them
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
CHECKOUT = FOLDER.parent
SECONDS = 3600
"""Longest time of a cell."""


def main() -> None:
    """Execute the notebooks that are named, or all."""
    for name in sys.argv[1:] or [path.name for path in sorted(FOLDER.glob("*.ipynb"))]:
        notebook = nbformat.read(FOLDER / name, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        nbformat.write(notebook, FOLDER / name)
        print(f"{name}: {len(notebook.cells)} cells")


def execute(notebook: NotebookNode, folder: Path, environment: dict[str, str] | None = None) -> None:
    """Execute `notebook` in place, in a new kernel of this Python whose working directory is `folder`.

    Args:
        notebook: Its outputs are replaced, and what differs from run to run beside them is left out.
        folder: Where the notebook's own files go.
        environment: More environment variables of the kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the message holds it.
    """
    resources = {"metadata": {"path": str(folder)}}
    # Warns that other users of this machine could listen to the kernel.
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources=resources,
        extra_arguments=quiet,
    )
    ours = {"PYTHONPATH": str(CHECKOUT), "IPYTHONDIR": str(folder / ".ipython")}
    client.execute(env={**os.environ, **(environment or {}), **ours})
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


if __name__ == "__main__":
    main()
