"""Flags with values that cannot be, and starts that most likely mean something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.errors import CheckpointStoreError, RunnerError

TRANSPORTS = pytest.mark.parametrize("transport", ["local", "spark"])


def run(*flags: str) -> Any:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(list(flags)))
    _ = pipeline | beam.Create([1])
    return pipeline.run()


@TRANSPORTS
def test_values_that_cannot_be_are_refused_all_at_once_by_flag(transport: str) -> None:
    wrong = [
        "--tasks=-3",
        "--key_groups=0",
        "--epoch_interval_ms=-5",
        "--epoch_attempts=0",
        "--split_after_ms=-1",
        "--driver_epochs_below_ms=-1",
        "--spark_conf=bad",
    ]
    with pytest.raises(RunnerError) as refused:
        run(f"--transport={transport}", "--spark_conf=spark.good=1", "--checkpoint=", *wrong)
    for flag in [*wrong, "--checkpoint="]:
        assert flag in refused.value.message
    assert "spark.good" not in refused.value.message


@TRANSPORTS
@pytest.mark.parametrize("explain", [False, True])
def test_a_place_that_cannot_hold_a_checkpoint_is_refused(tmp_path: Path, transport: str, explain: bool) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(CheckpointStoreError, match=r"--checkpoint=.*") as refused:
            run(
                f"--transport={transport}",
                f"--checkpoint={tmp_path / place}",
                *(["--explain=text"] if explain else []),
            )
        assert str(tmp_path / "file") in refused.value.message
