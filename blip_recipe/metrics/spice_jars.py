"""Download the parser of SPICE from Maven on first use (390 MB, shared by all projects)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from blip_recipe.metrics.cache_folder import cache_folder
from blip_recipe.metrics.errors import SpiceJarsError

SECONDS_OF_SILENCE = 30


class Artifact(NamedTuple):
    """A jar: its Maven coordinates and its checksum."""

    group: str
    name: str
    version: str
    classifier: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The file name in Maven repositories."""
        return "-".join(filter(None, [self.name, self.version, self.classifier])) + ".jar"


CORENLP = ("edu.stanford.nlp", "stanford-corenlp", "3.6.0")
# SPICE prints its results with a script engine. Java 15 and later no longer include one.
RHINO = "1.7.15.1"
ARTIFACTS = (
    Artifact(*CORENLP, "", "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742"),
    Artifact(*CORENLP, "models", "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd"),
    Artifact("org.mozilla", "rhino", RHINO, "", "f3520a0e2e22d550f1216a456be233eb5385bf08e3219407dece7a16369eb38f"),
    Artifact(
        "org.mozilla", "rhino-engine", RHINO, "", "10a5f3b84d0d7a021b1b179a0ffbae0802cc3dabff32d31ae22b4e7df07d0bcb"
    ),
)


def spice_jars() -> list[Path]:
    """Return the jars that pycocoevalcap does not include, and download those missing in the cache folder.

    A jar gets its name only after the download is complete and its sha256 is checked, so an interrupted download can be
    repeated.

    Raises:
        SpiceJarsError: A download failed, or a checksum is wrong. The message says how to install the jar by hand.
    """
    folder = cache_folder("spice", "jars")
    jars = [folder / artifact.file_name for artifact in ARTIFACTS]
    for artifact, jar in zip(ARTIFACTS, jars, strict=True):
        if not jar.exists():
            fetch_artifact(artifact, jar)
    return jars


def fetch_artifact(artifact: Artifact, jar: Path) -> None:
    """Download `artifact` with jgo, and move it to `jar` when it is complete."""
    from jgo.maven import MavenContext, PythonResolver

    try:
        with tempfile.TemporaryDirectory(dir=jar.parent) as folder:
            context = MavenContext(
                resolver=PythonResolver(progress_callback=download_progress),
                repo_cache=Path(folder),
                timeout=SECONDS_OF_SILENCE,
            )
            component = context.project(artifact.group, artifact.name).at_version(artifact.version)
            fetched = component.artifact(classifier=artifact.classifier).resolve()
            check_sha256(fetched, artifact)
            fetched.replace(jar)
    except (OSError, RuntimeError) as error:
        raise SpiceJarsError(
            f"{artifact.file_name} could not be downloaded: {error}. {manual_steps(jar.parent)}"
        ) from error


def check_sha256(path: Path, artifact: Artifact) -> None:
    """Raise `RuntimeError` if the checksum is wrong. jgo itself only warns."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != artifact.sha256:
        raise RuntimeError(f"its sha256 is {digest.hexdigest()}, expected {artifact.sha256}")


@contextmanager
def download_progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr for a download of `size` bytes."""
    with tqdm(total=size, desc=name, unit="B", unit_scale=True) as bar:

        def advance(read: int) -> None:
            bar.update(read)

        yield advance


def manual_steps(folder: Path) -> str:
    """Instructions for installing the jars without a network."""
    wanted = ", ".join(
        f"{artifact.group}:{artifact.name}:{artifact.version}"
        + (f" (classifier {artifact.classifier})" if artifact.classifier else "")
        for artifact in ARTIFACTS
    )
    return (
        f"Run again with a network connection. Or copy the jars into {folder}, from the same folder of another machine "
        f"or from a Maven repository ({wanted}). Or leave spice out of metrics."
    )
