"""One run of the main job: from settings to accounts that add up. What `run` does between its flags and its summary."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import apache_beam as beam
import polars as pl
from apache_beam.runners.runner import PipelineState

from beam_pipelines.accounting import Accounts
from beam_pipelines.io.kafka import SLICE_ROWS, ReadFromKafka
from beam_pipelines.io.partition_reader import close_readers
from beam_pipelines.job_error import job_error
from beam_pipelines.job_identity import JobIdentity, claim_checkpoint
from beam_pipelines.pipelines.job import JobConfig, Online, build, tables
from beam_pipelines.runners import RunnerName, RunnerPlan, make_runner
from common.config import Settings
from common.domain import Domain
from common.lake import Lake, current_panes, scan
from common.schema_registry import Registry

if TYPE_CHECKING:
    from spark_jobs.beam_runner.planning.plan import Plan

HEARTBEAT_MS = 10_000
Progress = Callable[[str, Mapping[str, int], float], None]  # what, counters so far, seconds since the start


@dataclass(frozen=True)
class JobRequest:
    """What to run. `settings` have all addresses by now."""

    settings: Settings
    domain: Domain
    runner: RunnerName
    streaming: bool
    until_drained: bool = True
    slice_rows: int = SLICE_ROWS
    beam_options: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        return "stream" if self.streaming else "batch"

    @property
    def lake(self) -> Lake:
        """Streams and batches have tables of their own: a batch replaces them, a stream adds to them."""
        return Lake(self.settings.warehouse_of(self.mode))

    @property
    def topic(self) -> str:
        return self.settings.topic or self.domain.topic

    @property
    def identity(self) -> JobIdentity:
        return JobIdentity(self.domain.name, self.topic, self.lake.warehouse, self.settings.buckets)

    @property
    def checkpoint(self) -> str:
        return self.settings.checkpoint_of(self.mode)


@dataclass(frozen=True)
class JobReport:
    """What came of it."""

    run_id: str
    accounts: Accounts
    processed: int  # events consumed by this run; `accounts.consumed` counts since the checkpoint began
    online_rows: int
    epochs: int
    seconds: float  # of the pipeline alone: services, schemas and production are not in it
    epoch_seconds: tuple[float, ...] = ()
    differences: tuple[str, ...] = ()
    gold: Mapping[str, int] = field(default_factory=dict)  # view -> distinct (entity, tile)
    tables: Mapping[str, int] = field(default_factory=dict)  # name -> Delta version

    @property
    def events_per_second(self) -> float:
        return self.processed / self.seconds if self.seconds else 0.0


class Job:
    """A job that is running; `request_stop` may come from a signal handler."""

    def __init__(self, request: JobRequest, on_progress: Progress) -> None:
        self._request, self._on_progress = request, on_progress
        self._result: Any = None
        self._epoch_seconds: list[float] = []
        self._started = 0.0
        self._stop = False
        self._counters: Mapping[str, int] = {}

    def request_stop(self) -> None:
        """Ends a stream after the epoch under way. A batch cannot stop half-way: nothing of it is published."""
        self._stop = True
        if hasattr(self._result, "request_stop"):
            self._result.request_stop()

    def run(self) -> JobReport:
        """Blocks until the job ends, then checks its accounts. Raises what the pipeline raised."""
        request = self._request
        run_id = uuid.uuid4().hex[:12]
        if request.streaming:
            claim_checkpoint(request.checkpoint, request.identity)
        before = _consumed_before(request)
        runner, options = make_runner(
            RunnerPlan(
                name=request.runner,
                streaming=request.streaming,
                checkpoint=request.checkpoint,
                parallelism=request.settings.parallelism,
                until_idle=request.until_drained,
                beam_options=request.beam_options,
                on_epoch=self._note_epoch,
            )
        )
        self._started = time.monotonic()
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline, job_config(request, run_id))
        try:
            self._result = pipeline.run()
            if self._stop:
                self.request_stop()
            self._wait()
        except Exception as error:
            raise job_error(error, request.settings.state_dir / "errors" / f"{run_id}.log") from error
        finally:
            close_readers()  # a runner in this process leaves them open, and they complain when the broker stops
        seconds = time.monotonic() - self._started
        counters = _counters(self._result)
        accounts = Accounts.from_counters(counters, request.domain)
        lake = request.lake
        return JobReport(
            run_id=run_id,
            accounts=accounts,
            processed=accounts.consumed - before,
            online_rows=getattr(self._result, "published", counters).get("online_rows", 0)
            or counters.get("pipeline/online_rows", 0),
            epochs=getattr(self._result, "epochs", 1),
            seconds=seconds,
            epoch_seconds=tuple(self._epoch_seconds),
            differences=tuple(accounts.differences(lake)),
            gold={view.name: _gold_rows(lake, view.name, view.key) for view in request.domain.features},
            tables={name: int(lake.open(name).version()) for name in tables(request.domain) if lake.exists(name)},
        )

    def _wait(self) -> None:
        """Until the job ends; says that it is alive where the runner can be asked."""
        if not hasattr(self._result, "epochs"):
            self._result.wait_until_finish()
            return
        while self._result.wait_until_finish(HEARTBEAT_MS) == PipelineState.RUNNING:
            seconds = time.monotonic() - self._started
            self._on_progress(f"epoch {self._result.epochs} under way", self._counters, seconds)

    def _note_epoch(self, info: Any) -> None:
        self._counters = info.counters
        self._epoch_seconds.append(info.seconds)
        self._on_progress(f"epoch {info.epoch}", info.counters, time.monotonic() - self._started)


def plan_job(request: JobRequest) -> Plan:
    """The job as SparkRunner would run it. Asks no service, starts nothing."""
    runner, options = make_runner(
        RunnerPlan(
            name=RunnerName.SPARK,
            streaming=request.streaming,
            checkpoint=request.checkpoint,
            beam_options=request.beam_options,
        )
    )
    pipeline = beam.Pipeline(runner=runner, options=options)
    build(pipeline, job_config(request, run_id="plan"))
    return cast("Plan", runner.plan(pipeline))


def job_config(request: JobRequest, run_id: str) -> JobConfig:
    """The job as the settings describe it, reading from Kafka."""
    settings, domain = request.settings, request.domain
    source = ReadFromKafka(
        settings,
        request.topic,
        grace_ms=domain.lateness.grace_ms,
        bounded=not request.streaming,
        slice_rows=request.slice_rows,
    )
    return JobConfig(
        domain=domain,
        source=source,
        writer_schemas=Registry(settings.registry_url),
        lake=request.lake,
        bounded=not request.streaming,
        mode="append" if request.streaming else "overwrite",
        run=run_id,
        buckets=settings.buckets,
        pii_key_file=settings.key_file.absolute(),
        online=Online(domain.name, settings.redis_url),
    )


def with_reference(domain: Domain, file: Path | None) -> Domain:
    """The domain with the reference table that belongs to a replayed log."""
    if file is None or domain.reference is None:
        return domain
    return replace(domain, reference=replace(domain.reference, file=file.absolute()))


def _counters(result: Any) -> dict[str, int]:
    sums: dict[str, int] = {}
    for counter in result.metrics().query()["counters"]:
        name = f"{counter.key.metric.namespace}/{counter.key.metric.name}"
        sums[name] = sums.get(name, 0) + int(counter.committed or 0)
    return sums


def _consumed_before(request: JobRequest) -> int:
    """Events that earlier runs on this checkpoint consumed."""
    if not request.streaming:
        return 0
    from spark_jobs.beam_runner.checkpoint.progress import committed_counters

    return committed_counters(request.checkpoint).get("pipeline/consumed", 0)


def _gold_rows(lake: Lake, view: str, key: str) -> int:
    if not lake.exists(f"gold/{view}"):
        return 0
    return int(current_panes(scan(lake, f"gold/{view}"), [key]).select(pl.len()).collect().item())
