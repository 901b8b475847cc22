"""`--runner` by name: ours for Spark, Beam's own for the rest, and no option that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

import beam_pipelines
from beam_pipelines.cli.run import Runner
from beam_pipelines.runners import RunnerName, RunnerPlan, make_runner
from common.errors import ConfigError
from spark_jobs.beam_runner import SparkRunner, SparkRunnerOptions

STREAM = RunnerPlan(RunnerName.SPARK, streaming=True, checkpoint="checkpoints/stream", parallelism=3)


def test_the_command_line_knows_the_same_names() -> None:
    """It has them twice, because importing Beam to show --help would take 2 s."""
    assert [runner.value for runner in Runner] == [runner.value for runner in RunnerName]


def test_spark_is_our_runner_and_streams_from_its_checkpoint() -> None:
    runner, options = make_runner(STREAM)
    flags = options.view_as(SparkRunnerOptions)
    assert isinstance(runner, SparkRunner)
    assert options.view_as(StandardOptions).streaming
    assert (flags.checkpoint, flags.tasks, flags.until_idle) == ("checkpoints/stream", 3, True)


def test_a_stream_can_go_on_for_ever() -> None:
    plan = RunnerPlan(RunnerName.SPARK, streaming=True, checkpoint="c", until_idle=False)
    assert not make_runner(plan)[1].view_as(SparkRunnerOptions).until_idle


def test_a_batch_has_no_checkpoint() -> None:
    options = make_runner(RunnerPlan(RunnerName.SPARK, streaming=False, checkpoint="c"))[1]
    assert not options.view_as(StandardOptions).streaming
    assert options.view_as(SparkRunnerOptions).checkpoint is None


def test_direct_is_the_runner_in_this_process() -> None:
    """Beam's DirectRunner by name would try to download a binary first."""
    runner, _ = make_runner(RunnerPlan(RunnerName.DIRECT, streaming=False))
    assert isinstance(runner, FnApiRunner)


@pytest.mark.parametrize("name", [RunnerName.PRISM, RunnerName.FLINK, RunnerName.PORTABLE])
def test_the_rest_are_beams_own_by_name(name: RunnerName) -> None:
    runner, options = make_runner(RunnerPlan(name, streaming=False))
    assert runner == name.value
    assert options.view_as(StandardOptions).runner == name.value


@pytest.mark.parametrize("name", [name for name in RunnerName if name is not RunnerName.SPARK])
def test_only_ours_streams(name: RunnerName) -> None:
    with pytest.raises(ConfigError, match=f"{name} runs this job as a batch only") as raised:
        make_runner(RunnerPlan(name, streaming=True))
    assert raised.value.hint == f"python -m beam_pipelines run --runner={name} --mode batch"


def test_options_go_to_the_runner() -> None:
    plan = RunnerPlan(RunnerName.SPARK, streaming=False, beam_options=("--key_groups=8",))
    assert make_runner(plan)[1].view_as(SparkRunnerOptions).key_groups == 8


@pytest.mark.parametrize("flags", [("--key_grops=8",), ("--nope", "5"), ("--nope",)])
def test_an_option_that_nobody_knows_is_refused(flags: tuple[str, ...]) -> None:
    """Beam would drop it without a word."""
    with pytest.raises(ConfigError, match=flags[0].strip("-").partition("=")[0]):
        make_runner(RunnerPlan(RunnerName.SPARK, streaming=False, beam_options=flags))


def test_workers_of_a_cluster_get_the_pipelines() -> None:
    """They have neither the project nor its working folder; on a local master they import what the driver does."""

    def shipped(master: str) -> list[str]:
        plan = RunnerPlan(
            RunnerName.SPARK, streaming=False, beam_options=(f"--spark_master={master}", "--py_files=x.py")
        )
        return list(make_runner(plan)[1].view_as(SparkRunnerOptions).py_files)

    assert shipped("local[2]") == ["x.py"]
    assert shipped("spark://head:7077") == ["x.py", str(Path(beam_pipelines.__file__).parent)]
