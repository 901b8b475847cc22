"""`run`: the main job, from Kafka to served features; on embedded services where no address is set."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beam_pipelines.cli.output import Format, OutputOption, emit_json, say
from beam_pipelines.cli.progress import Progress
from beam_pipelines.cli.signals import draining
from common.config import Settings, load_settings
from common.domain import Domain, load_domain
from common.errors import ConfigError

if TYPE_CHECKING:
    from beam_pipelines.launch import JobReport, JobRequest

DEMO_EVENTS = 100_000
REPLAY = "replay"  # the source of settings that a replayed log brings
EMBEDDED = "embedded service"  # the source of an address that this command started itself

_SETTINGS = (
    "topic",
    "warehouse",
    "checkpoint",
    "bootstrap_servers",
    "registry_url",
    "redis_url",
    "repo",
    "state_dir",
    "parallelism",
    "buckets",
)


class Runner(StrEnum):
    """The names of beam_pipelines.runners.RunnerName, without importing Beam."""

    SPARK = "SparkRunner"
    DIRECT = "DirectRunner"
    PRISM = "PrismRunner"
    FLINK = "FlinkRunner"
    PORTABLE = "PortableRunner"


class Mode(StrEnum):
    """A stream goes on from its checkpoint; a batch takes the whole topic and replaces the batch tables."""

    STREAM = "stream"
    BATCH = "batch"


def run(
    context: typer.Context,
    runner: Annotated[Runner, typer.Option(help="Who runs the pipelines.")] = Runner.SPARK,
    mode: Annotated[
        Mode, typer.Option(help="stream: go on from the checkpoint. batch: the whole topic, into tables of its own.")
    ] = Mode.STREAM,
    until_drained: Annotated[
        bool, typer.Option("--until-drained/--forever", help="End a stream when the topic has nothing more.")
    ] = True,
    events: Annotated[
        int | None,
        typer.Option(help=f"Messages to generate first. Default: {DEMO_EVENTS:,} on embedded Kafka, else 0.", min=0),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the generator: the same seed, the same events.")] = 7,
    replay: Annotated[
        Path | None,
        typer.Option(help="A log to turn into events, instead of the generator.", exists=True, dir_okay=False),
    ] = None,
    log_format: Annotated[str | None, typer.Option("--format", help="Format of --replay, e.g. movielens.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="CSV of the reference table. Default: the domain's, or the replayed log's own.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Kafka topic. Default: the domain's.")] = None,
    warehouse: Annotated[str | None, typer.Option(help="Where tables go: a path, s3://... or gs://...")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Where a stream keeps its state and position.")] = None,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Kafka. Default: an embedded broker.")] = None,
    registry_url: Annotated[str | None, typer.Option(help="Schema registry. Default: an embedded one.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis, without password. Default: embedded Valkey.")] = None,
    repo: Annotated[Path | None, typer.Option(help="The domain's folder. Default: feature_repo")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Services' data, state, tables. Default: .pipelines")] = None,
    parallelism: Annotated[int | None, typer.Option(help="Tasks per level. Default: the number of cores.")] = None,
    buckets: Annotated[int | None, typer.Option(help="Spread of keyed state; fixed for a checkpoint's life.")] = None,
    slice_rows: Annotated[
        int, typer.Option(help="Most rows of a Kafka partition that an epoch takes.", min=1)
    ] = 200_000,
    keep_services: Annotated[bool, typer.Option("--keep-services", help="Leave embedded services running.")] = False,
    output: Annotated[Format, OutputOption] = Format.TEXT,
) -> int:
    """Run the main job: Kafka -> bronze -> silver -> gold -> Feast.

    With no option at all it starts Kafka, a schema registry and Valkey on this machine, generates events, takes them
    to served features on Spark, checks that every event is accounted for, and shows where everything is.

    Ctrl-C once finishes the epoch under way and stops; twice stops at once. Options after `--` go to the Beam runner.

    Examples:

      python -m beam_pipelines run --runner=SparkRunner

      python -m beam_pipelines run --replay ratings.csv --format movielens

      python -m beam_pipelines run --runner=DirectRunner --mode batch --events 20000
    """
    if runner is not Runner.SPARK and mode is Mode.STREAM:
        raise ConfigError(
            f"{runner} runs this job as a batch only: it cannot publish epochs exactly once",
            code="batch_only_runner",
            hint=f"python -m beam_pipelines run --runner={runner} --mode batch",
        )
    if (replay is None) != (log_format is None):
        raise ConfigError("--replay and --format go together", code="replay_format", hint="add --format movielens")
    if context.args:
        # The job does it too; here it costs no start of services. Beam takes 2 s to import, so only when needed.
        from beam_pipelines.runners import RunnerName, RunnerPlan, make_runner

        make_runner(RunnerPlan(RunnerName(runner), streaming=mode is Mode.STREAM, beam_options=tuple(context.args)))
    settings = load_settings({name: context.params[name] for name in _SETTINGS})
    domain = load_domain(settings.repo)
    if log_format is not None and not settings.topic:
        settings = _place_of_replay(settings, domain, mode, log_format)
    _require_pii_key(settings)
    _require_answers(settings, domain)
    with Progress() as progress, _services(settings, progress, keep=keep_services) as settings:
        if settings.sources.get("topic", "").startswith(REPLAY) and settings.sources.get("redis_url") == EMBEDDED:
            # Features of two logs must not meet in one key space; on a server of your own, name a database.
            settings = settings.with_values(EMBEDDED, redis_url=f"{settings.redis_url}/1")
        produced: dict[str, Any] | None = None
        if _wants_messages(settings, domain, progress, events, replay):
            count = DEMO_EVENTS if events is None else events
            produced = _produce(settings, progress, count, seed, replay, log_format)
        progress.step(f"{mode} on {runner}: starting")
        # Feast takes seconds to import; the job's driver mostly waits for its workers.
        threading.Thread(target=importlib.import_module, args=("beam_pipelines.serving.sample",), daemon=True).start()
        from beam_pipelines.launch import JobRequest, with_reference
        from beam_pipelines.runners import RunnerName

        request = JobRequest(
            settings=settings,
            domain=with_reference(domain, reference or _own_reference(settings, log_format)),
            runner=RunnerName(runner),
            streaming=mode is Mode.STREAM,
            until_drained=until_drained,
            slice_rows=slice_rows,
            beam_options=tuple(context.args),
        )
        report = _run_job(request, progress)
        sample = _served_sample(request, progress)
    document = _document(request, report, produced, sample)
    if output is Format.JSON:
        emit_json(document)
    else:
        from beam_pipelines.cli.summary import print_summary

        print_summary(document)
    failures = [f"the accounts do not add up: {difference}" for difference in report.differences]
    if sample is not None and not sample["matches_gold"]:
        failures.append(f"the online store and gold disagree on {sample['view']}")
    for failure in failures:
        say(f"error: {failure}")
    return 1 if failures else 0


def _require_answers(settings: Settings, domain: Domain) -> None:
    """What has an address must answer, before anything is started: a worker would find out a minute later."""
    from beam_pipelines.cli import probes

    missing = settings.missing_services
    if "kafka" not in missing:
        probes.ask_kafka(settings, settings.topic or domain.topic)
    if "registry" not in missing:
        probes.ask_registry(settings.registry_url)
    if "valkey" not in missing:
        probes.ask_redis(settings.redis_url)


@contextmanager
def _services(settings: Settings, progress: Progress, *, keep: bool) -> Iterator[Settings]:
    """Settings with all addresses: what has none is started here, and stopped at the end."""
    from common.services.supervisor import Services

    missing = settings.missing_services
    if not missing:
        yield settings
        return
    progress.step(f"services: {', '.join(missing)}")
    services = Services(settings.state_dir, on_progress=progress.step)
    with ExitStack() as stack:
        endpoints = services.up(missing) if keep else stack.enter_context(services.running(missing))
        addresses = {
            "bootstrap_servers": endpoints.bootstrap_servers,
            "registry_url": endpoints.registry_url,
            "redis_url": endpoints.redis_url,
        }
        yield settings.with_values(EMBEDDED, **{name: value for name, value in addresses.items() if value})


def _require_pii_key(settings: Settings) -> None:
    """On embedded Kafka a missing key is made; with a real one it must be given: a new key would break all joins."""
    from common.pii import KEY_VARIABLE, create_key_file, load_key

    path, is_demo = settings.key_file, not settings.bootstrap_servers
    if KEY_VARIABLE not in os.environ:
        if not is_demo and settings.pii_key_file is None:
            raise ConfigError(
                f"a Kafka of your own needs a key for personal data of your own: set {KEY_VARIABLE}, or "
                "PIPELINES_PII_KEY_FILE to a file that only you can read",
                code="no_pii_key",
                hint=f"export {KEY_VARIABLE}=$(openssl rand -hex 32)    # and keep it: another key breaks all joins",
            )
        if is_demo and not path.exists():
            create_key_file(path)
            say(f"made a key for personal data: {path}")
    load_key(path)


def _place_of_replay(settings: Settings, domain: Domain, mode: Mode, log_format: str) -> Settings:
    """A replayed log gets a topic, tables and a checkpoint of its own, unless a topic is named.

    Its clock may be decades behind that of the events in the domain's topic, where all of it would be too late.
    """
    name = f"{mode}-{log_format}"
    place = {"topic": f"{domain.topic}_{log_format}"}
    place |= {} if settings.warehouse else {"warehouse": settings.warehouse_of(name)}
    place |= {} if settings.checkpoint else {"checkpoint": settings.checkpoint_of(name)}
    return settings.with_values(f"{REPLAY} of {log_format}", **place)


def _own_reference(settings: Settings, log_format: str | None) -> Path | None:
    """The reference table that `produce` left for a replayed or generated log, if the domain's own does not fit it."""
    if log_format is None and settings.sources.get("bootstrap_servers") != EMBEDDED:
        return None
    path = settings.state_dir / "reference" / f"{log_format or 'generated'}.csv"
    return path if path.exists() else None


def _wants_messages(
    settings: Settings, domain: Domain, progress: Progress, events: int | None, replay: Path | None
) -> bool:
    """Whether to fill the topic first: as asked; on the embedded Kafka, unasked, or with a replay, if it is empty."""
    if events is not None and replay is None:
        return events > 0
    if settings.sources.get("bootstrap_servers") != EMBEDDED:
        return replay is not None
    from beam_pipelines.io.partition_reader import count_records

    topic = settings.topic or domain.topic
    existing = count_records(settings, topic)
    if existing:
        progress.step(f"topic {topic} has {existing:,} messages; none are added (--events N adds generated ones)")
    return existing == 0


def _produce(
    settings: Settings, progress: Progress, events: int, seed: int, replay: Path | None, log_format: str | None
) -> dict[str, Any]:
    from beam_pipelines.cli.produce import produce_demo

    progress.step(f"producing {replay.name if replay else f'{events:,} events'}")
    report = produce_demo(
        settings, events=events, seed=seed, replay=replay, format=log_format, on_progress=progress.produced
    )
    progress.step(f"produced {report.produced:,} messages, {report.produced / max(report.seconds, 1e-9):,.0f}/s")
    return report.as_dict()


def _run_job(request: JobRequest, progress: Progress) -> JobReport:
    from beam_pipelines.launch import Job

    job = Job(request, progress.epoch)
    with draining(job.request_stop):
        report = job.run()
    progress.step(f"done: {report.processed:,} events in {report.seconds:.1f} s, {report.events_per_second:,.0f}/s")
    return report


def _served_sample(request: JobRequest, progress: Progress) -> dict[str, Any] | None:
    """Registers the views with Feast, and reads one entity's features back from the online store."""
    progress.step("Feast: registering views, reading a feature vector online")
    from beam_pipelines.serving.sample import read_sample

    settings = request.settings
    return read_sample(
        request.domain,
        request.lake,
        registry=settings.state_dir / "feast" / f"{Path(request.checkpoint).name}.db",
        redis_url=settings.redis_url,
    )


def _document(
    request: JobRequest, report: JobReport, produced: dict[str, Any] | None, sample: dict[str, Any] | None
) -> dict[str, Any]:
    accounts = report.accounts
    return {
        "run_id": report.run_id,
        "runner": str(request.runner),
        "mode": request.mode,
        "consumed": accounts.consumed,
        "bronze": accounts.bronze,
        "bronze_dlq": accounts.bronze_dlq,
        "silver": accounts.silver,
        "duplicates": accounts.duplicates,
        "silver_dlq": accounts.silver_dlq,
        "late": accounts.late,
        "gold": dict(report.gold),
        "online_rows": report.online_rows,
        "epochs": report.epochs,
        "seconds": round(report.seconds, 3),
        "events_per_second": round(report.events_per_second, 1),
        "tables": dict(report.tables),
        "processed": report.processed,
        "epoch_seconds": [round(seconds, 3) for seconds in report.epoch_seconds],
        "warehouse": request.lake.warehouse,
        "checkpoint": request.checkpoint if request.streaming else None,
        "balanced": not report.differences,
        "differences": list(report.differences),
        "produced": produced,
        "online_sample": sample,
    }
