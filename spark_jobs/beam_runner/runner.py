"""SparkRunner: a Beam `PipelineRunner` for portable Python pipelines on Spark."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from spark_jobs.beam_runner.beam_internals import (
    FnApiRunnerResult,
    PipelineRunner,
    PipelineState,
    has_teardown,
    prepare_proto,
)
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.progress import last_manifest
from spark_jobs.beam_runner.driver import EpochInfo, EpochLoop
from spark_jobs.beam_runner.errors import SHARED_PLACE, RunnerError
from spark_jobs.beam_runner.options import (
    SparkRunnerOptions,
    refuse_flags_of_other_runners,
    require_valid,
    worker_log_levels,
)
from spark_jobs.beam_runner.planning.explain import with_changes
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.planning.translate import make_plan
from spark_jobs.beam_runner.planning.upgrade import Change, compare, fixed_key_groups, refused
from spark_jobs.beam_runner.transport import Transport
from spark_jobs.beam_runner.transport.local import LocalTransport

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

DRIVER_EPOCHS_BELOW_MS = 100  # on a local master
REFUSED = 3  # exit code of --explain


class SparkRunner(PipelineRunner):
    """Runs a pipeline as one epoch (batch) or as epochs without end (`--streaming`).

    In streaming, `run` returns at once and the job goes on in a thread: `result.wait_until_finish()` waits for it. A
    batch runs in the caller's thread, so that Ctrl-C ends it.
    State, side inputs and sources are restored from `--checkpoint`; every element takes effect exactly once in state
    and in sinks written through `Publish`, whatever is killed. See `SparkRunnerOptions` for the flags.

    `spark`: a session to use instead of the active one, or a new one. `on_epoch`: called after each commit, in the
    job's thread.
    `is_drain`: unbounded restrictions are truncated to what their DoFns still want to do, so that the job ends.
    """

    def __init__(
        self,
        spark: SparkSession | None = None,
        on_epoch: Callable[[EpochInfo], None] | None = None,
        *,
        is_drain: bool = False,
    ) -> None:
        self._spark, self._on_epoch, self._is_drain = spark, on_epoch, is_drain

    def plan(self, pipeline: Any, options: PipelineOptions | None = None) -> Plan:
        """What would run, as data. Starts nothing. Raises UnsupportedPipelineError or ConfigError as a start would."""
        options = pipeline.options if options is None else options
        refuse_flags_of_other_runners(options)
        worker_log_levels(options.get_all_options())
        return make_plan(prepare_proto(pipeline, options), options, is_drain=self._is_drain)

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> FnApiRunnerResult:
        """-> a SparkRunnerResult; with `--explain` a result that is DONE and has run nothing.

        Raises SystemExit(3), after `--explain` has printed, if `--checkpoint` would refuse the start.
        """
        flags = options.view_as(SparkRunnerOptions)
        streaming = bool(options.view_as(StandardOptions).streaming)
        require_valid(flags, streaming=streaming)
        plan = self.plan(pipeline, options)
        if flags.explain:
            manifest = last_manifest(flags.checkpoint) if flags.checkpoint else None
            problems: list[Change] = []
            if manifest is None:
                text = plan.explain(flags.explain)
            else:
                changes = compare(manifest, plan)
                accepted = flags.drop_incompatible or ()
                note = fixed_key_groups(manifest, flags.key_groups)
                text = with_changes(plan, changes, flags.explain, accepted, note)
                problems = refused(changes, accepted)
            sys.stdout.write(text + "\n")
            if problems:
                raise SystemExit(REFUSED)
            return FnApiRunnerResult(PipelineState.DONE, {})
        if streaming and not flags.checkpoint and plan.script is None:
            _log.warning("A stream without --checkpoint: its state and positions are gone when it stops.")
        checkpoint = Checkpoint(flags.checkpoint) if flags.checkpoint else None
        if checkpoint is not None:
            checkpoint.prepare()  # before Spark starts: the place may not do
        transport = self._transport(flags, has_teardown(pipeline), streaming=streaming)
        root: str | None = None
        if checkpoint is None:
            root = tempfile.mkdtemp(prefix="beam-checkpoint-")
            checkpoint = Checkpoint(root, is_shared=self._is_on_one_machine(flags))
            checkpoint.prepare()
        loop = EpochLoop(
            plan,
            transport,
            checkpoint,
            key_groups=flags.key_groups,
            streaming=streaming,
            until_idle=flags.until_idle and streaming,
            drain=flags.drain,
            split_after_s=flags.split_after_ms / 1000 if streaming else None,
            memory_bytes=flags.spill_above_mb << 20,
            interval_ms=flags.epoch_interval_ms if streaming else 0,
            drop_incompatible=flags.drop_incompatible or (),
            epoch_attempts=flags.epoch_attempts,
            on_epoch=self._on_epoch,
        )
        result = SparkRunnerResult(loop, temporary_root=root)
        if streaming:
            result.start()
        else:
            result.run()
            result.wait_until_finish()
        return result

    def _transport(self, flags: Any, has_teardown: bool, *, streaming: bool) -> Transport:
        if flags.transport == "local":
            return LocalTransport(flags.tasks or 2)
        # Imported here: the local transport works without Spark.
        from spark_jobs.beam_runner.transport.adaptive import AdaptiveTransport
        from spark_jobs.beam_runner.transport.spark import SparkTransport
        from spark_jobs.session import require_session, spark_session
        from spark_jobs.shipping import is_local, ship_own_packages, ship_py_files

        spark = self._session()
        if streaming and not flags.checkpoint and not self._is_on_one_machine(flags):
            raise RunnerError(
                f"A stream on {self._master(flags)} has no --checkpoint that its workers could share.",
                hint=SHARED_PLACE,
            )
        conf = dict(setting.split("=", 1) for setting in flags.spark_conf or ())
        if spark is None:
            spark = spark_session(master=flags.spark_master, cores=flags.tasks or None, conf=conf)
        else:
            require_session(spark, flags.spark_master, conf)
        context = spark.sparkContext
        if not is_local(context.master):
            ship_own_packages(context)  # the session may be the caller's
        ship_py_files(context, flags.py_files or ())
        transport = SparkTransport(context, flags.tasks, has_teardown=has_teardown)
        limit_ms = flags.driver_epochs_below_ms
        if limit_ms is None:
            limit_ms = DRIVER_EPOCHS_BELOW_MS if is_local(context.master) else 0
        return AdaptiveTransport(transport, limit_ms / 1000) if streaming and limit_ms else transport

    def _session(self) -> SparkSession | None:
        """The session to use, if there is one already."""
        from spark_jobs.session import active_session

        return self._spark or active_session()

    def _master(self, flags: Any) -> str | None:
        spark = self._session()
        master: str | None = spark.sparkContext.master if spark else flags.spark_master
        return master

    def _is_on_one_machine(self, flags: Any) -> bool:
        """Whether all tasks see the files of this machine."""
        if flags.transport == "local":
            return True
        from spark_jobs.session import is_on_loopback

        master = self._master(flags)
        return master is None or is_on_loopback(master)


class SparkRunnerResult(FnApiRunnerResult):
    """A running or finished job. Metrics count each element once, also across crashes and restarts."""

    def __init__(self, loop: EpochLoop, temporary_root: str | None) -> None:
        super().__init__(PipelineState.RUNNING, {})
        self._loop = loop
        # Also when the process ends first, as by Ctrl-C: a job's thread ends with it.
        self._clean_up = (
            None
            if temporary_root is None
            else weakref.finalize(self, shutil.rmtree, temporary_root, ignore_errors=True)
        )
        self._error: BaseException | None = None
        self._stopped_as: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Runs the job in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="epochs", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Runs the job to its end, in this thread. Raises nothing: `wait_until_finish` does."""
        try:
            self._loop.run()
            if self._loop.manifest.draining:
                self._state = PipelineState.DRAINED
            else:
                self._state = self._stopped_as or PipelineState.DONE
        except BaseException as error:
            self._error = error
            self._state = PipelineState.FAILED
        finally:
            if self._clean_up is not None:
                self._clean_up()

    @property
    def state(self) -> str:
        return str(self._state)

    @property
    def epochs(self) -> int:
        """Epochs committed since the start of the checkpoint."""
        return self._loop.manifest.epoch + 1

    @property
    def published(self) -> dict[str, int]:
        """Sums of what the publishers reported in this run."""
        return dict(self._loop.published)

    def request_stop(self) -> None:
        """Finishes the epoch under way, publishes it, and ends the job. State stays in the checkpoint."""
        self._stop_as(PipelineState.STOPPED)

    def _stop_as(self, state: str) -> None:
        self._stopped_as = self._stopped_as or state
        self._loop.request_stop()

    def drain(self) -> str:
        """Brings the stream to its end and returns at once; `wait_until_finish` waits for it.

        Each source keeps what its truncation says (by default: bounded restrictions finish, unbounded ones end here),
        then the watermarks go to the end of time, so that all windows and event-time timers fire. A crash during a
        drain goes on draining. The checkpoint of a drained stream is at its end for good.
        """
        self._loop.request_drain()
        return self.state

    def cancel(self) -> str:
        """As `request_stop`, but the job ends as CANCELLED: Beam's word."""
        self._stop_as(PipelineState.CANCELLED)
        return self.state

    def wait_until_finish(self, duration: int | None = None) -> str:
        """Waits, at most `duration` milliseconds. Raises the job's error, if it failed."""
        if self._thread is not None:
            self._thread.join(None if duration is None else duration / 1000)
        if self._error is not None:
            raise self._error
        return self.state

    def metrics(self) -> Any:
        self._refresh()
        return super().metrics()

    def monitoring_metrics(self) -> Any:
        self._refresh()
        return super().monitoring_metrics()

    def _refresh(self) -> None:
        self._monitoring_infos_by_stage = self._loop.monitoring_infos()
        self._metrics = self._monitoring_metrics = None
