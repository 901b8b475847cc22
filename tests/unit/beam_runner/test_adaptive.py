"""Which epochs are taken in the driver; and that a stream which changes places has the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_jobs.beam_runner.bundles.order import Report
from spark_jobs.beam_runner.errors import StepError
from spark_jobs.beam_runner.transport.adaptive import SMALL_IN_A_ROW, AdaptiveTransport
from tests.faults import counting_job
from tests.faults.differences import differences


class Recorded:
    """A transport whose epochs take the seconds that it is told."""

    partitions = 2

    def __init__(self) -> None:
        self.seconds = 0.0
        self.runs = 0

    def run(self, *_: object) -> list[Report]:
        self.runs += 1
        return [Report(seconds=self.seconds / 2), Report(seconds=self.seconds / 2)]

    def committed(self, *_: object) -> None: ...

    def close(self) -> None: ...


def runs_on_spark(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> list[bool]:
    """Where each epoch is run, given how long it takes."""
    spark, here = Recorded(), Recorded()
    transport = AdaptiveTransport(spark, limit_s=0.1)
    monkeypatch.setattr(transport, "_local", here)
    places = []
    for each in seconds:
        spark.seconds = here.seconds = each
        before = spark.runs
        transport.run(None, None, 0, {})  # type: ignore[arg-type]
        places.append(spark.runs > before)
    return places


def test_small_epochs_come_here_after_a_few_and_large_ones_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [0.05] * SMALL_IN_A_ROW
    assert runs_on_spark(monkeypatch, [*small, 0.05, 0.3, 0.6, 0.05]) == [True] * SMALL_IN_A_ROW + [
        False,
        False,  # longer than the limit, but not by much: changing places costs too
        False,
        True,
    ]
    assert all(runs_on_spark(monkeypatch, [0.05, 0.2] * 5))


def test_an_error_here_looks_like_one_from_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("its own words [while running 'step']")

    transport = AdaptiveTransport(Recorded(), limit_s=0.1)
    monkeypatch.setattr(transport._local, "run", fail)
    monkeypatch.setattr(transport, "_small", SMALL_IN_A_ROW)
    with pytest.raises(StepError, match=r"ValueError: its own words \[while running 'step'\]") as failed:
        transport.run(None, None, 0, {})  # type: ignore[arg-type]
    assert "in fail" in failed.value.worker_traceback


@pytest.mark.slow
def test_a_stream_that_changes_places_has_exact_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[bool] = []
    original = AdaptiveTransport.run

    def run(self: AdaptiveTransport, *args: Any) -> list[Report]:
        self._small = SMALL_IN_A_ROW * (len(places) // 3 % 2)  # three epochs on Spark, three here, and so on
        places.append(self._small > 0)
        return original(self, *args)

    monkeypatch.setattr(AdaptiveTransport, "run", run)
    counting_job.main([str(tmp_path), "2000", "150", "--tasks=2"])
    assert differences(tmp_path, 2000) == 0
    assert set(places) == {True, False}
