"""Key groups that a worker keeps in memory: read from the checkpoint once, and no longer kept than they can be used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from spark_jobs.beam_runner.bundles.worker import Worker
from spark_jobs.beam_runner.checkpoint.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Frame, KeyGroupMeta
from spark_jobs.beam_runner.keyed.state import KeyGroup
from spark_jobs.beam_runner.transport.local import LocalTransport
from tests.model.script import Script, at, step
from tests.model.stream import Stage

EPOCHS, KEYS = 12, 16


class Count(beam.DoFn):
    SEEN = ReadModifyWriteStateSpec("seen", VarIntCoder())

    def process(self, pair: tuple[str, int], seen: Any = beam.DoFn.StateParam(SEEN)) -> Any:
        seen.write((seen.read() or 0) + 1)
        yield pair[0], seen.read()


def count(stage: Stage, *, goes_on: bool) -> None:
    """Counts each key once an epoch; `goes_on`: with a level behind the one that keeps state."""

    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(
            [step(*[at(n, (f"k{key:02}", 1)) for key in range(KEYS)], watermark=n) for n in range(EPOCHS)]
        )
        counts = pairs | beam.ParDo(Count()).with_output_types(tuple[str, int])
        stage.collect(counts | beam.Reshuffle() if goes_on else counts)

    stage.run(build, 2)
    assert stage.keyed() == [(f"k{key:02}", n + 1) for key in range(KEYS) for n in range(EPOCHS)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the state files that are read."""
    names: list[str] = []
    original = Checkpoint.read

    def noted(self: Checkpoint, folder: str, name: str, *where: int) -> bytes:
        if folder == STATE:
            names.append(name)
        return original(self, folder, name, *where)

    monkeypatch.setattr(Checkpoint, "read", noted)
    return names


@pytest.mark.parametrize("goes_on", [False, True], ids=["last level", "a level behind it"])
@pytest.mark.parametrize("shared", [False, True], ids=["a worker a task", "a worker for all tasks"])
def test_a_warm_worker_reads_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str], goes_on: bool, shared: bool
) -> None:
    if shared:  # as on Spark, where a process may get several tasks of an epoch
        original = LocalTransport.__init__

        def with_one_worker(self: LocalTransport, partitions: int) -> None:
            original(self, partitions)
            self._workers = self._workers[:1] * partitions

        monkeypatch.setattr(LocalTransport, "__init__", with_one_worker)
    count(Stage(tmp_path), goes_on=goes_on)
    assert read == []


def test_an_attempt_begins_without_copies_that_nobody_can_catch_up_from(tmp_path: Path) -> None:
    checkpoint, worker = Checkpoint(tmp_path), Worker()
    lost, committed, newer = (Frame(name, 0, 1, True) for name in ("lost", "committed", "newer"))
    plan: Any = SimpleNamespace(row_types=b"", main_classes={})
    worker._has_classes = True
    states = {number: KeyGroup() for number in range(3)}
    for number, at_frame in enumerate((lost, committed, newer)):
        worker.cache.keep(checkpoint, "stage", number, at_frame, states[number])

    def begin(attempt: str) -> None:
        groups = {"stage": {number: KeyGroupMeta((committed, newer)) for number in range(3)}}
        order: Any = SimpleNamespace(committed=frozenset(), attempt=attempt, checkpoint=checkpoint, groups=groups)
        worker.begin(plan, order)

    begin("first")
    assert [key[2] for key in worker.cache._groups] == [1, 2]
    worker.cache.keep(checkpoint, "stage", 0, lost, states[0])  # by the first task of the attempt
    begin("first")
    assert 0 in [key[2] for key in worker.cache._groups], "a second task of it comes before the commit"
    begin("second")
    assert [key[2] for key in worker.cache._groups] == [1, 2]
