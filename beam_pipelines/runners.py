"""Runners by name: ours for Spark, Beam's own for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import ConfigError


class RunnerName(StrEnum):
    """What `--runner` takes."""

    SPARK = "SparkRunner"
    DIRECT = "DirectRunner"
    PRISM = "PrismRunner"
    FLINK = "FlinkRunner"
    PORTABLE = "PortableRunner"


@dataclass(frozen=True)
class RunnerPlan:
    """How to run: where state is (streams only), how wide, and what is told on the way."""

    name: RunnerName
    streaming: bool
    checkpoint: str | None = None
    parallelism: int = 0
    until_idle: bool = True
    beam_options: Sequence[str] = ()
    on_epoch: Callable[[Any], None] | None = None


def make_runner(plan: RunnerPlan) -> tuple[Any, PipelineOptions]:
    """-> (what `beam.Pipeline(runner=...)` takes, its options).

    Raises ConfigError for a stream on a runner without exactly-once sinks, and for options that no one knows.
    """
    if plan.streaming and plan.name is not RunnerName.SPARK:
        raise ConfigError(
            f"{plan.name} runs this job as a batch only: its sinks publish when the input is complete",
            code="batch_only_runner",
            hint=f"python -m beam_pipelines run --runner={plan.name} --mode batch",
        )
    flags = list(plan.beam_options)
    if plan.name is RunnerName.SPARK:
        # Imported here: the other runners work without Spark.
        from spark_jobs.beam_runner import SparkRunner, SparkRunnerOptions
        from spark_jobs.shipping import is_local

        flags += [f"--tasks={plan.parallelism}"]
        if plan.streaming:
            flags += ["--streaming", f"--checkpoint={plan.checkpoint}"]
            flags += ["--until_idle"] if plan.until_idle else []
        options = _options(flags)
        ours = options.view_as(SparkRunnerOptions)
        if ours.spark_master and not is_local(ours.spark_master):  # the runner ships itself only
            ours.py_files = [*(ours.py_files or ()), str(Path(__file__).parent)]
        return SparkRunner(on_epoch=plan.on_epoch), options
    if plan.name is RunnerName.DIRECT:
        # Beam's DirectRunner tries Prism first, a binary that it downloads; its in-memory runner needs nothing.
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner

        return FnApiRunner(), _options(flags)
    return str(plan.name), _options([*flags, f"--runner={plan.name}"])


def _options(flags: list[str]) -> PipelineOptions:
    options = PipelineOptions(flags)
    # Beam drops what it does not know without a word.
    unknown = [flag for flag in options.get_all_options(retain_unknown_options=True) if not _is_known(options, flag)]
    if unknown:
        raise ConfigError(f"no Beam option is named {', '.join(unknown)}", code="unknown_beam_option")
    return options


def _is_known(options: PipelineOptions, name: str) -> bool:
    return name in options.get_all_options()
