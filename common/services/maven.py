"""Java artifacts by Maven coordinates: downloaded once, kept in a cache, and proven by SHA-256 at every start.

A lock file names one artifact a line, ``group:artifact:version[:classifier[:extension]] sha256=HEX``; blank lines and
``#`` comments are free. The cache has the layout of a Maven repository, so a machine without a network is served by
copying a ``~/.m2/repository`` into ``<cache>/maven``: what counts is the digest, not where the bytes came from.

No repository is named here. `jgo`, a Maven client in Python, knows the default one,
reads ``~/.m2/repository`` (or ``$M2_REPO``) and takes mirrors from the ``[repositories]`` section of its own
``~/.config/jgo.conf``. Its download is neither atomic nor bound to a digest (a wrong SHA-1 is only a warning), hence
it writes to a private folder, and a file enters the cache by a rename after its digest is proven.

After a change of coordinates, write the digests anew and review the difference::

    python -m common.services.maven common/services/locks/kafka.lock
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from common.errors import PipelineError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

DOWNLOAD_THREADS = 8
DOWNLOAD_ATTEMPTS = 3
SOCKET_TIMEOUT_S = 60
LOCK_ENTRY = re.compile(
    r"(?P<group>[^:\s]+):(?P<name>[^:\s]+):(?P<version>[^:\s]+)(:(?P<classifier>[^:\s]*)(:(?P<extension>[^:\s]+))?)?"
    r"(\s+sha256=(?P<sha256>[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Artifact:
    """One file of a Maven repository; `sha256` is empty only in a lock file that is yet to be pinned."""

    group: str
    name: str
    version: str
    classifier: str = ""
    extension: str = "jar"
    sha256: str = ""

    @property
    def coordinates(self) -> str:
        """``group:artifact:version[:classifier[:extension]]``, as short as a lock file may write it."""
        parts = [self.group, self.name, self.version]
        if self.classifier or self.extension != "jar":
            parts.append(self.classifier)
        if self.extension != "jar":
            parts.append(self.extension)
        return ":".join(parts)

    @property
    def path(self) -> PurePosixPath:
        """Place of the file inside any Maven repository."""
        classifier = f"-{self.classifier}" if self.classifier else ""
        file_name = f"{self.name}-{self.version}{classifier}.{self.extension}"
        return PurePosixPath(*self.group.split("."), self.name, self.version, file_name)


def default_cache() -> Path:
    """``$PIPELINES_CACHE``, else ``~/.cache/beam-pipelines``: shared by all projects of a user."""
    return Path(os.environ.get("PIPELINES_CACHE") or Path.home() / ".cache" / "beam-pipelines")


def parse_lock(text: str, *, origin: str, pinned: bool = True) -> list[Artifact]:
    """Artifacts of a lock file, in its order.

    Raises:
        PipelineError: ``bad_lock`` for a line of another shape, or without a digest when `pinned`.
    """
    artifacts = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        match = LOCK_ENTRY.fullmatch(entry)
        if match is None or (pinned and not match["sha256"]):
            raise PipelineError(
                f"{origin}:{number}: expected 'group:artifact:version[:classifier[:extension]] sha256=<64 hex digits>'",
                code="bad_lock",
                hint=f"python -m common.services.maven {origin}",
            )
        given = {name: value for name, value in match.groupdict().items() if value}
        artifacts.append(Artifact(**given))
    return artifacts


def resolve(
    artifacts: Sequence[Artifact], cache: Path, on_progress: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Local paths of `artifacts`, in their order; what is missing or damaged in the cache is downloaded in parallel.

    Every returned file has the digest of its lock line: read in full each time, as 45 MB take 30 ms.

    Raises:
        PipelineError: ``artifact_unavailable`` when no repository gives a file, ``artifact_digest_mismatch`` when one
            gives another file than the lock names.
    """
    repository = cache / "maven"
    paths = [repository / artifact.path for artifact in artifacts]
    with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
        found = pool.map(lambda artifact, path: path.is_file() and sha256_of(path) == artifact.sha256, artifacts, paths)
        missing = [artifact for artifact, ok in zip(artifacts, found, strict=True) if not ok]
    if missing:
        on_progress(f"downloading {len(missing)} Maven artifacts to {repository}")
        _download(missing, repository)
    return paths


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(artifacts: Sequence[Artifact], repository: Path) -> None:
    """Bring `artifacts` into `repository`, each by one rename; an artifact without a digest is taken as it is."""
    repository.mkdir(parents=True, exist_ok=True)
    # On the cache's own file system, so that the rename is atomic; private, so that two commands do not collide.
    with tempfile.TemporaryDirectory(dir=repository, prefix=".download-") as staging:
        context = _maven_context(Path(staging))
        with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
            list(pool.map(lambda artifact: _download_one(artifact, context, repository), artifacts))


def _download_one(artifact: Artifact, context: MavenContext, repository: Path) -> None:
    remote = context.project(artifact.group, artifact.name).at_version(artifact.version)
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            source = remote.artifact(artifact.classifier, artifact.extension).resolve()
            break
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors, jgo's own are RuntimeErrors
            (context.repo_cache / artifact.path).unlink(missing_ok=True)  # half a file would pass as a whole one
            if attempt == DOWNLOAD_ATTEMPTS:
                raise PipelineError(
                    f"Maven artifact {artifact.coordinates} could not be fetched ({type(error).__name__})",
                    code="artifact_unavailable",
                    hint=f"check the network, or copy the file to {repository / artifact.path}, and try again",
                ) from error
    digest = sha256_of(source)
    if artifact.sha256 and digest != artifact.sha256:
        raise PipelineError(
            f"Maven artifact {artifact.coordinates} has sha256 {digest}, its lock file says {artifact.sha256}",
            code="artifact_digest_mismatch",
            hint="a proxy or mirror may have altered it: compare the two, and never run a file that you cannot explain",
        )
    target = repository / artifact.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_relative_to(context.repo_cache):
        source.replace(target)
    else:  # the user's own Maven repository: leave it whole
        copy = context.repo_cache / f"{digest}.copy"
        copy.write_bytes(source.read_bytes())
        copy.replace(target)


def _maven_context(staging: Path) -> MavenContext:
    """A client that looks in the user's Maven repository, in jgo's configured mirrors, then in the default one."""
    from jgo.config import GlobalSettings  # 0.4 s, and only a first start needs it
    from jgo.maven import MavenContext

    settings = GlobalSettings.load()
    context = MavenContext(repo_cache=staging, local_repos=[Path(settings.repo_cache)], timeout=SOCKET_TIMEOUT_S)
    context.remote_repos = {**settings.repositories, **context.remote_repos}
    return context


def pin(lock: Path, cache: Path) -> None:
    """Rewrite the digests of `lock` from what the repositories give now; comments and order stay."""
    artifacts = parse_lock(lock.read_text(), origin=str(lock), pinned=False)
    fresh = [replace(artifact, sha256="") for artifact in artifacts]
    _download(fresh, cache / "maven")
    pinned = {a.coordinates: f"{a.coordinates} sha256={sha256_of(cache / 'maven' / a.path)}" for a in fresh}
    lines = [pinned.get(line.partition(" ")[0], line) for line in lock.read_text().splitlines()]
    lock.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        pin(Path(name), default_cache())
