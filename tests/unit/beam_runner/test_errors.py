"""What a worker said, found again in the exception that Spark makes of it."""

from __future__ import annotations

import pytest

from spark_jobs.beam_runner.errors import StepError

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


def test_without_a_traceback_the_first_line_counts() -> None:
    assert StepError.from_spark(Exception("Task lost\n\tat x")).message == "Task lost"


def test_code_written_for_beams_portable_runners_catches_it() -> None:
    with pytest.raises(RuntimeError, match="ValueError: bad"):
        raise StepError.from_spark(Exception(f"{FRAMES}ValueError: bad [while running 'bronze/decode']{JAVA}"))
