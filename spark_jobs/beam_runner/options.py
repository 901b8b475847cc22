"""Flags of SparkRunner, as Beam pipeline options."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, SetupOptions, WorkerOptions

from common.errors import ConfigError
from spark_jobs.beam_runner.bundles.spool import MEMORY_BYTES
from spark_jobs.beam_runner.errors import RunnerError

# What they ask for would be silently missing on the workers.
_OF_OTHER_RUNNERS: dict[type[PipelineOptions], tuple[str, ...]] = {
    SetupOptions: ("setup_file", "requirements_file", "extra_packages"),
    PortableOptions: ("environment_type", "environment_config", "environment_options", "job_endpoint"),
    WorkerOptions: ("worker_harness_container_image", "sdk_container_image"),
}
KEY_GROUPS = 64  # of a checkpoint whose first start has no --key_groups
_SAY_NOTHING = ("LOOPBACK", "embed")  # no environment, no job server: so it is here
_LEAST = {
    "tasks": 0,
    "key_groups": 1,
    "epoch_interval_ms": 0,
    "epoch_attempts": 1,
    "split_after_ms": 0,
    "driver_epochs_below_ms": 0,
    "spill_above_mb": 0,
}


def require_valid(flags: Any, *, streaming: bool) -> None:
    """Raises RunnerError that names all flags with values that cannot be, or that say nothing without another."""
    wrong = [
        f"--{name}={value}: the least is {least}"
        for name, least in _LEAST.items()
        if (value := getattr(flags, name)) is not None and value < least
    ]
    wrong += [f"--spark_conf={conf}: KEY=VALUE is needed" for conf in flags.spark_conf or () if "=" not in conf]
    if flags.checkpoint is not None and not flags.checkpoint.strip():
        wrong.append("--checkpoint= is empty: a folder, or gs://bucket/path")
    if flags.drain and not (streaming and flags.checkpoint):
        wrong.append("--drain ends the stream of a checkpoint: it wants --streaming and --checkpoint")
    if wrong:
        raise RunnerError(f"Flags of SparkRunner: {'; '.join(wrong)}.")


class SparkRunnerOptions(PipelineOptions):
    """`--streaming` is Beam's own flag; the ones below are the runner's."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--spark_master", default=None, help="Spark master URL; default local[<cores>].")
        parser.add_argument(
            "--spark_conf", action="append", default=None, metavar="KEY=VALUE", help="A Spark setting; may be repeated."
        )
        parser.add_argument(
            "--checkpoint",
            default=None,
            help="Place of the stream's manifests and state: a folder that all workers share, or gs://bucket/path. A "
            "restart with the same place goes on from the last committed epoch. Without it a temporary folder is used "
            "and deleted at the end.",
        )
        parser.add_argument(
            "--drop_incompatible",
            action="append",
            default=None,
            metavar="STEP",
            help="At a start with a changed pipeline, drop what this step left in the checkpoint if it does not fit: "
            "state, unread input or unpublished rows. May be repeated.",
        )
        parser.add_argument(
            "--explain",
            choices=["text", "json", "mermaid"],
            default=None,
            help="Print the plan, and with --checkpoint what a start on it means for each step. Runs nothing.",
        )
        parser.add_argument(
            "--py_files",
            action="append",
            default=None,
            metavar="PATH",
            help="A .py file, a .zip, a pure-Python .whl or a package's folder that the workers of a cluster import "
            "from; may be repeated. The runner ships its own packages; Beam and PySpark, in the driver's versions, "
            "must be installed on the workers.",
        )
        parser.add_argument("--tasks", type=int, default=0, help="Tasks per level; 0 = as many as Spark has cores.")
        parser.add_argument(
            "--key_groups",
            type=int,
            default=None,
            help=f"Units of keyed state; fixed at the first start of a checkpoint. Default: {KEY_GROUPS}.",
        )
        parser.add_argument(
            "--epoch_interval_ms", type=int, default=0, help="Least time between the starts of two epochs."
        )
        parser.add_argument(
            "--epoch_attempts",
            type=int,
            default=3,
            help="How often an epoch is run before the job fails, if a worker or executor dies in it. An error raised "
            "by the pipeline's own code fails the job at once.",
        )
        parser.add_argument(
            "--until_idle",
            action="store_true",
            default=False,
            help="End a stream when no source has anything new. State stays: the next run goes on from here.",
        )
        parser.add_argument(
            "--drain",
            action="store_true",
            default=False,
            help="Bring the stream of --checkpoint to its end: sources are truncated, then all windows close. With "
            "--streaming.",
        )
        parser.add_argument(
            "--split_after_ms",
            type=int,
            default=5000,
            help="In a stream, cut restrictions of splittable DoFns that do not defer by themselves after this time.",
        )
        parser.add_argument(
            "--driver_epochs_below_ms",
            type=int,
            default=None,
            help="Take epochs of a stream in the driver, without Spark, once its tasks need less than this in all; "
            "0 = never. Default: 100 on a local master, 0 on a cluster.",
        )
        parser.add_argument(
            "--spill_above_mb",
            type=int,
            default=MEMORY_BYTES >> 20,
            help="Encoded elements that a task holds in memory, of those that it receives and of those that it sends "
            "each; what is more waits in a temporary file on the worker's disk.",
        )
        parser.add_argument(
            "--transport",
            choices=["spark", "local"],
            default="spark",
            help="spark: levels are Spark tasks. local: the same task code in this process, no Spark (tests).",
        )


def worker_log_levels(options: Mapping[str, Any]) -> dict[str, int]:
    """Logger -> level in Spark's workers, by all options of a pipeline: the driver's, or what Beam's flags say.

    Raises ConfigError if there is no such level.
    """
    wanted = {"": options.get("default_sdk_harness_log_level") or logging.getLogger().level}
    wanted |= options.get("sdk_harness_log_level_overrides") or {}
    levels: dict[str, int] = {}
    for name, level in wanted.items():
        number = logging.getLevelNamesMapping().get(str(level).upper(), str(level))
        if not str(number).isdecimal():
            flag = "--sdk_harness_log_level_overrides" if name else "--default_sdk_harness_log_level"
            raise ConfigError(
                f"{flag}: there is no log level {level!r}",
                code="bad_log_level",
                hint="DEBUG, INFO, WARNING, ERROR or a number",
            )
        levels[name] = int(number)
    return levels


def refuse_flags_of_other_runners(options: PipelineOptions) -> None:
    """Raises ConfigError that names all flags of Beam's packaging and environments that are set."""
    given = [
        f"--{name}={value}"
        for view, names in _OF_OTHER_RUNNERS.items()
        for name in names
        if (value := getattr(options.view_as(view), name)) and value not in _SAY_NOTHING
    ]
    if given:
        raise ConfigError(
            f"SparkRunner has no use for {', '.join(given)}",
            code="foreign_flag",
            hint="--py_files=<module, package or wheel> ships your own code; what else the pipeline imports must be "
            "installed on the workers, in the Python that --spark_conf=spark.pyspark.python=<path> names.",
        )
