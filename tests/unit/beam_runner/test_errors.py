"""What a worker said, found again in the exception that Spark makes of it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from spark_jobs.beam_runner.errors import CheckpointError, StepError, worker_error
from spark_jobs.beam_runner.transport import spark_worker

FRAMES = """\
org.apache.spark.SparkException: Job aborted: Traceback (most recent call last):
  File "/x/kafka.py", line 109, in read
    records = reader.read(rows)
              ^^^^^^^^^^^^^^^^^
"""
JAVA = "\n\n\tat org.apache.spark.api.python.BasePythonRunner.read(PythonRunner.scala:1)\nDriver stacktrace:"


def test_the_message_is_the_exception() -> None:
    error = StepError.from_spark(Exception(f"{FRAMES}ValueError: bad [while running 'bronze/decode']{JAVA}"))
    assert error.message == "ValueError: bad [while running 'bronze/decode']"
    assert "line 109" in error.worker_traceback
    assert "scala" not in error.worker_traceback


def test_an_indented_hint_does_not_hide_the_message() -> None:
    """As our own errors have: it looks like one more frame."""
    said = "common.errors.PipelineError: Kafka: no answer [source/kafka]\n  next: python -m beam_pipelines doctor"
    assert StepError.from_spark(Exception(FRAMES + said + JAVA)).message == said


def test_an_error_of_the_runner_is_itself_again_with_its_hint() -> None:
    text = (
        "spark_jobs.beam_runner.errors.CheckpointError: c/state/x.kg is damaged.\n  next: verify c    # and\nin epoch 3"
    )
    error = worker_error(Exception(FRAMES + text + JAVA))
    assert type(error) is CheckpointError
    assert (error.message, error.hint) == ("c/state/x.kg is damaged.\nin epoch 3", "verify c    # and")
    assert any("line 109" in note for note in error.__notes__)
    assert type(worker_error(Exception(f"{FRAMES}ValueError: bad{JAVA}"))) is StepError


def test_without_a_traceback_the_first_line_counts() -> None:
    assert StepError.from_spark(Exception("Task lost\n\tat x")).message == "Task lost"


def test_what_fails_between_bundles_says_where() -> None:
    order: Any = SimpleNamespace(epoch=3, partitions=2, memory_bytes=0)
    worker: Any = SimpleNamespace(load_classes=lambda _: None)
    sent = (pickle.loads(packed) for packed in [b"?"])  # as Spark's worker reads what was sent
    with pytest.raises(pickle.UnpicklingError) as failed:
        list(spark_worker.run_task(worker, None, order, 1, 0, sent, last=False))  # type: ignore[arg-type]
    assert failed.value.__notes__ == ["in epoch 3, task 0 of 2, between bundles of level 1"]


def test_out_of_memory_has_a_hint() -> None:
    assert "more --tasks" in str(StepError.from_spark(Exception(f"{FRAMES}MemoryError\nin epoch 3, task 0 of 2{JAVA}")))
    assert StepError.from_spark(Exception(f"{FRAMES}ValueError: bad{JAVA}")).hint is None


def test_code_written_for_beams_portable_runners_catches_it() -> None:
    with pytest.raises(RuntimeError, match="ValueError: bad"):
        raise StepError.from_spark(Exception(f"{FRAMES}ValueError: bad [while running 'bronze/decode']{JAVA}"))
