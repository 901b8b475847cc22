"""Flags with values that cannot be, and starts that most likely mean something else."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import ConfigError
from spark_jobs.beam_runner import SparkRunner, SparkRunnerOptions
from spark_jobs.beam_runner.errors import CheckpointStoreError, RunnerError
from spark_jobs.beam_runner.options import KEY_GROUPS
from tests.faults import counting_job

TRANSPORTS = pytest.mark.parametrize("transport", ["local", "spark"])


def run(*flags: str, read: Any = None) -> Any:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(list(flags)))
    source = pipeline | "made" >> beam.Create([1])
    if read is not None:
        _ = source | "endless" >> beam.ParDo(read).with_output_types(tuple[int, int])
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
        "--spill_above_mb=-1",
        "--spark_conf=bad",
    ]
    with pytest.raises(RunnerError) as refused:
        run(f"--transport={transport}", "--spark_conf=spark.good=1", "--checkpoint=", *wrong)
    for flag in [*wrong, "--checkpoint="]:
        assert flag in refused.value.message
    assert "spark.good" not in refused.value.message


@pytest.mark.parametrize("others", [[], ["--streaming"], ["--checkpoint=/nowhere"]])
def test_a_drain_of_nothing_is_refused(others: list[str]) -> None:
    with pytest.raises(RunnerError, match="--drain ends the stream of a checkpoint: it wants --streaming and --check"):
        run("--transport=local", "--drain", *others)


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


def test_a_folder_with_other_things_is_no_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "home"
    (place / "photographs").mkdir(parents=True)
    (place / "lost+found").mkdir()
    with pytest.raises(CheckpointStoreError, match=r"home is no checkpoint.*photographs"):
        run("--transport=local", f"--checkpoint={place}")
    (place / "photographs").rmdir()
    (place / "job.json").write_text("{}")
    assert run("--transport=local", f"--checkpoint={place}").state == "DONE"


def test_a_batch_that_has_ended_on_its_checkpoint_says_so(tmp_path: Path) -> None:
    flags = ["--transport=local", f"--checkpoint={tmp_path}/c"]
    run(*flags)
    with pytest.raises(RunnerError, match=r"Nothing was run: the batch has ended, at epoch 0 of .*/c") as told:
        run(*flags)
    assert "a new --checkpoint" in str(told.value.hint)


def test_a_stream_that_has_ended_on_its_checkpoint_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ["--transport=local", "--streaming", f"--checkpoint={tmp_path}/c"]
    run(*flags).wait_until_finish()
    assert "Nothing was run" not in caplog.text
    assert run(*flags).wait_until_finish() == "DONE"
    assert "Nothing was run: the stream was drained or has read its sources to their end" in caplog.text


def test_a_stream_without_a_checkpoint_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("--transport=local", "--streaming", f"--checkpoint={tmp_path}/c").wait_until_finish()
    assert "without --checkpoint" not in caplog.text
    run("--transport=local", "--streaming").wait_until_finish()
    assert "A stream without --checkpoint" in caplog.text


def test_another_number_of_key_groups_is_warned_of_at_the_start_and_by_explain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--transport=local", "--streaming", f"--checkpoint={tmp_path}/c"]
    run(*flags, "--key_groups=8").wait_until_finish()
    fixed = "--key_groups=32 changes nothing: it has 8, fixed at the first start"
    for same in ([], ["--key_groups=8"]):
        run(*flags, *same).wait_until_finish()
        run(*flags, *same, "--explain=text")
    assert "changes nothing" not in caplog.text + capsys.readouterr().out
    run(*flags, "--key_groups=32").wait_until_finish()
    assert f"{tmp_path}/c: {fixed}." in caplog.text
    run(*flags, "--key_groups=32", "--explain=text")
    assert f"on this checkpoint\n  {fixed}\n" in capsys.readouterr().out


def test_an_unbounded_source_in_a_batch_is_warned_of_by_name(caplog: pytest.LogCaptureFixture) -> None:
    run("--explain=text", "--streaming", read=counting_job.Count(1, 1))
    assert "unbounded" not in caplog.text
    run("--explain=text")
    assert "unbounded" not in caplog.text
    run("--explain=text", read=counting_job.Count(1, 1))
    assert "Without --streaming, a batch reads the unbounded source endless:" in caplog.text


@pytest.mark.parametrize(("how", "state"), [("cancel", "CANCELLED"), ("request_stop", "STOPPED")])
def test_how_a_stream_was_ended_is_its_state(tmp_path: Path, how: str, state: str) -> None:
    flags = ["--transport=local", "--streaming", f"--checkpoint={tmp_path}/c"]
    result = run(*flags, read=counting_job.Count(10**9, 1))
    getattr(result, how)()
    assert result.wait_until_finish(60_000) == state


def test_a_step_to_drop_that_is_not_there_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ["--transport=local", "--streaming", "--until_idle", f"--checkpoint={tmp_path}/c"]
    for drop, warned in (("made/Impulse", False), ("maed", True)):
        run(*flags, f"--drop_incompatible={drop}", read=counting_job.Count(1, 1)).wait_until_finish()
        assert ("there is no maed, or not any more. There are: " in caplog.text) is warned
    assert "made" in caplog.text.partition("There are: ")[2]


@pytest.mark.parametrize(
    "flag",
    [
        "--setup_file=./setup.py",
        "--requirements_file=requirements.txt",
        "--environment_type=DOCKER",
        "--environment_config=image",
        "--job_endpoint=localhost:8099",
        "--sdk_container_image=image",
    ],
)
def test_packaging_and_environments_are_refused_by_name(flag: str) -> None:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local", flag]))
    _ = pipeline | beam.Create([1])
    with pytest.raises(ConfigError) as refused:
        pipeline.run()
    assert flag in refused.value.message


def test_all_are_named_at_once() -> None:
    flags = ["--extra_package=a.tar.gz", "--worker_harness_container_image=image", "--requirements_file="]
    flags += ["--environment_type=LOOPBACK", "--job_endpoint=embed"]  # as it is here
    with pytest.raises(ConfigError) as refused:
        SparkRunner().plan(beam.Pipeline(options=PipelineOptions(flags)))
    assert "--extra_packages=['a.tar.gz']" in refused.value.message
    assert "--worker_harness_container_image=image" in refused.value.message
    assert not re.findall("requirements_file|LOOPBACK|embed", refused.value.message)


def test_the_page_has_every_flag_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    SparkRunnerOptions._add_argparse_args(parser)
    page = (Path(__file__).parents[3] / "docs/spark-runner.md").read_text()
    told = dict(re.findall(r"^\| `--(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert told.pop("streaming") == "off"
    assert told.keys() == {action.dest for action in parser._actions}
    assert told["key_groups"] == str(KEY_GROUPS)
    for action in parser._actions:
        if isinstance(action.default, (int, str)):
            shown = "off" if action.default is False else str(action.default)
            assert told[action.dest].strip("`") == shown, action.dest
