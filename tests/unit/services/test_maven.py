"""Lock files, and what may and may not enter the cache. The Maven client is real; it is kept from the network."""

from __future__ import annotations

import hashlib
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from jgo.maven import MavenContext

from common.errors import PipelineError
from common.services import maven
from common.services.maven import Artifact, parse_lock, pin, resolve

CONTENT = b"the bytes of a jar"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
JAR = Artifact("org.example", "tool", "1.2", sha256=DIGEST)
JAR_PATH = "org/example/tool/1.2/tool-1.2.jar"


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of all repositories."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    monkeypatch.setattr(
        maven, "_maven_context", lambda staging: MavenContext(repo_cache=staging, local_repos=[folder], offline=True)
    )
    return folder


def publish(folder: Path, content: bytes, path: str = JAR_PATH) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_lock_lines_become_artifacts_in_order() -> None:
    text = f"""
    # a comment
    org.example:tool:1.2 sha256={DIGEST}
    org.example:tool:1.2:all sha256={DIGEST}   # and another

    org.example:tool:1.2:all:tar.gz sha256={DIGEST}
    org.example:tool:1.2::zip sha256={DIGEST}
    """
    artifacts = parse_lock(text, origin="x.lock")
    assert [artifact.path.name for artifact in artifacts] == [
        "tool-1.2.jar",
        "tool-1.2-all.jar",
        "tool-1.2-all.tar.gz",
        "tool-1.2.zip",
    ]
    assert [artifact.coordinates for artifact in artifacts] == [
        "org.example:tool:1.2",
        "org.example:tool:1.2:all",
        "org.example:tool:1.2:all:tar.gz",
        "org.example:tool:1.2::zip",
    ]
    assert str(artifacts[0].path) == JAR_PATH


@pytest.mark.parametrize(
    "line",
    [
        "org.example:tool sha256=" + DIGEST,
        "org.example:tool:1.2",
        "org.example:tool:1.2 sha256=" + DIGEST[:-1],
        "org.example:tool:1.2 sha256=" + DIGEST.upper(),
        "org.example:tool:1.2 sha1=" + DIGEST,
        "org.example::1.2 sha256=" + DIGEST,
        f"org.example:tool:1.2 sha256={DIGEST} more",
        f"a:b:c:d:e:f sha256={DIGEST}",
    ],
)
def test_a_bad_lock_line_is_refused_with_its_place(line: str) -> None:
    with pytest.raises(PipelineError, match=r"x\.lock:2:") as caught:
        parse_lock(f"# first\n{line}\n", origin="x.lock")
    assert caught.value.code == "bad_lock"


@pytest.mark.parametrize(("name", "count"), [("kafka.lock", 45), ("registry.lock", 1)])
def test_the_shipped_locks_are_pinned(name: str, count: int) -> None:
    lock = files("common.services") / "locks" / name
    assert len(set(parse_lock(lock.read_text(), origin=name))) == count


def test_a_missing_file_is_fetched_and_a_present_one_is_not(upstream: Path, tmp_path: Path) -> None:
    source, cache = publish(upstream, CONTENT), tmp_path / "cache"
    told: list[str] = []
    assert resolve([JAR], cache, told.append) == [cache / "maven" / JAR_PATH]
    assert (cache / "maven" / JAR_PATH).read_bytes() == CONTENT
    assert source.exists(), "the user's own repository was emptied"

    shutil.rmtree(upstream)
    assert resolve([JAR], cache, told.append) == [cache / "maven" / JAR_PATH]
    assert len(told) == 1
    assert not list((cache / "maven").glob(".download-*"))


def test_a_damaged_file_of_the_cache_is_replaced(upstream: Path, tmp_path: Path) -> None:
    publish(upstream, CONTENT)
    damaged = publish(tmp_path / "cache" / "maven", CONTENT[:-1] + b"?")  # same size
    resolve([JAR], tmp_path / "cache")
    assert damaged.read_bytes() == CONTENT


def test_a_file_with_another_digest_never_enters_the_cache(upstream: Path, tmp_path: Path) -> None:
    publish(upstream, b"something else")
    with pytest.raises(PipelineError, match=DIGEST) as caught:
        resolve([JAR], tmp_path / "cache")
    assert caught.value.code == "artifact_digest_mismatch"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_artifact_that_nobody_has_is_an_error_that_says_where_to_put_it(upstream: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"org\.example:tool:1\.2") as caught:
        resolve([JAR], tmp_path / "cache")
    assert caught.value.code == "artifact_unavailable"
    assert str(tmp_path / "cache" / "maven" / JAR_PATH) in str(caught.value.hint)


def test_pin_writes_digests_and_keeps_the_rest(upstream: Path, tmp_path: Path) -> None:
    publish(upstream, CONTENT)
    publish(upstream, b"new", "org/example/other/2/other-2-all.tar.gz")
    lock = tmp_path / "x.lock"
    lock.write_text(f"# why\norg.example:tool:1.2 sha256={'0' * 64}\norg.example:other:2:all:tar.gz\n")
    pin(lock, tmp_path / "cache")
    assert lock.read_text().splitlines() == [
        "# why",
        f"org.example:tool:1.2 sha256={DIGEST}",
        f"org.example:other:2:all:tar.gz sha256={hashlib.sha256(b'new').hexdigest()}",
    ]
