"""An archive is unpacked once, whole, and never outside its folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from common.services.archive import unpacked
from common.services.maven import Artifact, sha256_of


def publish(cache: Path, members: dict[str, bytes]) -> Artifact:
    """Put a tar archive into the Maven cache, as if it had been downloaded."""
    path = cache / "maven" / "org" / "example" / "app" / "1" / "app-1-all.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:  # uncompressed, so that the same members have the same digest
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return Artifact("org.example", "app", "1", "all", "tar.gz", sha256_of(path))


def test_unpacked_once_then_found(tmp_path: Path) -> None:
    artifact = publish(tmp_path, {"run.jar": b"run", "lib/a.jar": b"a"})
    told: list[str] = []
    folder = unpacked(artifact, tmp_path, told.append)
    assert (folder / "lib" / "a.jar").read_bytes() == b"a"
    assert not (tmp_path / "maven" / artifact.path).exists()  # its 159 MB are not kept twice
    assert unpacked(artifact, tmp_path, told.append) == folder
    assert told == ["unpacking app-1-all.tar.gz"]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_folder_that_is_not_whole_is_unpacked_again(tmp_path: Path, damage: str) -> None:
    members = {"run.jar": b"run", "lib/a.jar": b"a"}
    folder = unpacked(publish(tmp_path, members), tmp_path, lambda _: None)
    if damage == "missing":
        (folder / "lib" / "a.jar").unlink()
    else:
        (folder / "lib" / "a.jar").write_bytes(b"")
    assert unpacked(publish(tmp_path, members), tmp_path, lambda _: None) == folder
    assert (folder / "lib" / "a.jar").read_bytes() == b"a"


def test_a_member_outside_the_folder_is_refused(tmp_path: Path) -> None:
    artifact = publish(tmp_path, {"../../evil": b"x"})
    with pytest.raises(tarfile.OutsideDestinationError):
        unpacked(artifact, tmp_path, lambda _: None)
    assert not list(tmp_path.rglob("evil"))
