"""What a user sees of a job's way: its epochs, and what its DoFns log on Spark."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import ConfigError
from spark_jobs.beam_runner import SparkRunner
from tests.faults import counting_job
from tests.unit.beam_runner import script_job

DRIVER = "spark_jobs.beam_runner.driver"

INFO, WARNING = "INFO:mine:[epoch 0, step] info", "WARNING:root:[epoch 0, step] warning"
SCRIPT = """
import logging
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from spark_jobs.beam_runner import SparkRunner

logging.getLogger().setLevel(sys.argv[1])

def log(x):
    logging.debug("debug")
    logging.getLogger("mine").info("info")
    logging.warning("warning")

with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--tasks=1", *sys.argv[2:]])) as p:
    p | beam.Create([1]) | "step" >> beam.Map(log)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["WARNING"], [WARNING]),
        (["INFO"], [INFO, WARNING]),
        (["WARNING", "--default_sdk_harness_log_level=INFO"], [INFO, WARNING]),
        (["ERROR", '--sdk_harness_log_level_overrides={"mine": "info"}'], [INFO]),
    ],
    ids=["quiet", "as the driver", "by flag", "by logger"],
)
def test_workers_log_at_the_drivers_level_or_as_flags_say(tmp_path: Path, flags: list[str], shown: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "step] " in line] == shown
    assert "clientserver" not in done.stderr, "Spark's gateway tells of its connections"


def test_a_log_level_that_there_is_not_is_refused() -> None:
    for flag in ("--default_sdk_harness_log_level=LOUD", '--sdk_harness_log_level_overrides={"mine": "LOUD"}'):
        with pytest.raises(ConfigError, match="no log level 'LOUD'"):
            SparkRunner().plan(beam.Pipeline(), PipelineOptions([flag]))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without the seconds that epochs took."""
    said = [record.getMessage() for record in caplog.records if record.name == DRIVER]
    caplog.clear()
    return [message.partition(" took ")[0] for message in said]


def test_start_epochs_and_end_of_a_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, DRIVER)

    def run(*flags: str, stop_after: int | None = None) -> Any:
        def build(p: beam.Pipeline) -> Any:
            numbers = p | beam.Create([0]) | beam.ParDo(counting_job.Count(3, 1)).with_output_types(tuple[int, int])
            return numbers | beam.Map(lambda pair: str(pair[1]).encode())

        return script_job.run(tmp_path, build, *flags, stop_after=stop_after)

    run(stop_after=0)
    assert messages(caplog) == ["The job starts at epoch 0.", "Epoch 0", "The job is stopped after epoch 0."]
    last = run("--until_idle").epochs - 1
    goes_on, *epochs, end = messages(caplog)
    assert goes_on == f"The job goes on after epoch 0 of {tmp_path}/checkpoint."
    assert epochs == ["Epoch 1"], "and no other within ten seconds"
    assert last > 1
    assert end == f"The job is idle after epoch {last}."


def test_a_batch_says_nothing_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> None:
        with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"])) as p:
            _ = p | beam.Create([1])

    run()
    assert messages(caplog) == []
    caplog.set_level(logging.INFO, DRIVER)
    run()
    assert messages(caplog) == ["The job starts at epoch 0.", "Epoch 0", "The job is done after epoch 0."]
