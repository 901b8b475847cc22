"""`produce`: fills a topic with generated events, or with a real log, and tells what the pipeline must make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from beam_pipelines.cli.output import Format, OutputOption, emit_json, emit_table, say
from common.config import Settings, load_settings
from common.domain import Domain, load_domain
from common.errors import ConfigError
from common.event_source import EventSource, GenerateOptions
from common.kafka_config import kafka_config
from common.produce import ProduceReport, ensure_topic, produce_events, register_schemas
from common.repo_functions import repo_function
from common.schema_registry import Registry
from common.services.supervisor import Services

DEFAULT_SEED = 7
DEFAULT_PARTITIONS = 4
_NEEDED = ("kafka", "registry")
_SECONDS_BETWEEN_LINES = 2.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LogRequest:
    """Which log to produce: `replay` of a file in a format, or else `events` generated ones."""

    events: int
    seed: int = DEFAULT_SEED
    replay: Path | None = None
    format: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


def produce(
    events: Annotated[int, typer.Option(help="Messages in all, faulty ones included.", min=1)] = 100_000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal messages.", min=0)] = DEFAULT_SEED,
    rate: Annotated[float | None, typer.Option(help="Messages per second at most. Default: no limit.", min=0.1)] = None,
    users: Annotated[int | None, typer.Option(help="How many users there are.")] = None,
    videos: Annotated[int | None, typer.Option(help="How many videos there are.")] = None,
    malformed: Annotated[int | None, typer.Option(help="Messages that cannot be decoded.")] = None,
    invalid: Annotated[int | None, typer.Option(help="Events that break a quality rule.")] = None,
    duplicates: Annotated[int | None, typer.Option(help="Events that are sent again.")] = None,
    late: Annotated[int | None, typer.Option(help="Events behind the watermark, within the lateness.")] = None,
    too_late: Annotated[int | None, typer.Option(help="Events beyond the allowed lateness.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Send this log instead of generated events.")] = None,
    format: Annotated[str | None, typer.Option(help="Format of the replayed log, such as movielens.")] = None,  # noqa: A002
    start_at: Annotated[int, typer.Option(help="First message to send: continues a log sent in parts.", min=0)] = 0,
    stop_at: Annotated[int | None, typer.Option(help="Stop before this message. Default: the end.", min=0)] = None,
    partitions: Annotated[int, typer.Option(help="Of the topic, if it is created.", min=1)] = DEFAULT_PARTITIONS,
    topic: Annotated[str | None, typer.Option(help="Default: the domain's.")] = None,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Default: the embedded Kafka.")] = None,
    registry_url: Annotated[str | None, typer.Option(help="Default: the embedded schema registry.")] = None,
    repo: Annotated[Path | None, typer.Option(help="Folder of the domain. Default: feature_repo")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Folder of embedded services. Default: .pipelines")] = None,
    output: Annotated[Format, OutputOption] = Format.TEXT,
) -> None:
    """Produce events, and print the counts that the pipeline must reach."""
    flags = {
        "topic": topic,
        "bootstrap_servers": bootstrap_servers,
        "registry_url": registry_url,
        "repo": repo,
        "state_dir": state_dir,
    }
    faults = {
        "malformed": malformed,
        "invalid": invalid,
        "duplicates": duplicates,
        "late": late,
        "too_late": too_late,
    }
    sizes = {"users": users, "videos": videos}
    request = LogRequest(events, seed, replay, format, _given(sizes), _given(faults))
    settings = load_settings(flags)
    needed = [name for name in _NEEDED if name in settings.missing_services]
    with Services(settings.state_dir, on_progress=say).running(needed) if needed else nullcontext() as endpoints:
        if endpoints is not None:
            addresses = {"bootstrap_servers": endpoints.bootstrap_servers, "registry_url": endpoints.registry_url}
            settings = settings.with_values("embedded service", **{k: v for k, v in addresses.items() if v})
        report = produce_log(
            settings,
            request,
            partitions=partitions,
            start_at=start_at,
            stop_at=stop_at,
            rate=rate,
            on_progress=_lines(time.monotonic),
        )
    if output is Format.JSON:
        emit_json(report.as_dict())
        return
    say(f"{report.produced:,} messages in {report.seconds:.1f} s ({report.events_per_second:,.0f}/s)")
    emit_table(
        f"Ground truth of topic {report.topic}",
        ("counter", "rows"),
        [(name, count) for name, count in report.truth.items() if isinstance(count, int)],
    )


def produce_demo(
    settings: Settings,
    *,
    events: int,
    seed: int = DEFAULT_SEED,
    replay: Path | None = None,
    format: str | None = None,  # noqa: A002
    on_progress: Progress | None = None,
) -> ProduceReport:
    """Produces a whole log for a run of the pipeline; see `produce_log`."""
    return produce_log(settings, LogRequest(events, seed, replay, format), on_progress=on_progress)


def produce_log(
    settings: Settings,
    request: LogRequest,
    *,
    partitions: int = DEFAULT_PARTITIONS,
    start_at: int = 0,
    stop_at: int | None = None,
    rate: float | None = None,
    on_progress: Progress | None = None,
) -> ProduceReport:
    """Creates the topic if it is absent, registers the domain's schemas, and sends messages start_at..stop_at-1.

    `settings` must hold the addresses of Kafka and of the registry. The log depends on the request and on the number
    of partitions that the topic has, not on which part of it is sent.

    Raises:
        ConfigError: the request cannot be met.
        PipelineError: Kafka or the registry cannot be reached.
    """
    domain = load_domain(settings.repo)
    topic = settings.topic or domain.topic
    kafka = kafka_config(settings)
    partitions = ensure_topic(kafka, topic, partitions)
    source = open_source(domain, request, partitions)
    schema_ids = register_schemas(Registry(settings.registry_url), topic, domain.schemas)
    reference = settings.state_dir / "reference" / f"{request.format or 'generated'}.csv"
    has_reference = source.write_reference(reference)
    began = time.monotonic()
    produced = produce_events(
        source,
        schema_ids,
        kafka=kafka,
        topic=topic,
        start=start_at,
        stop=stop_at,
        rate=rate,
        on_progress=on_progress,
    )
    return ProduceReport(
        topic=topic,
        partitions=partitions,
        produced=produced,
        seconds=time.monotonic() - began,
        truth=source.truth().as_dict(),
        reference=reference if has_reference else None,
    )


def open_source(domain: Domain, request: LogRequest, partitions: int) -> EventSource:
    """The log that is asked for, made by the function that the domain declares for it."""
    if request.replay is not None:
        formats = ", ".join(domain.replays) or "none"
        if request.format is None or request.format not in domain.replays:
            asked = f"'{request.format}'" if request.format else "no format"
            raise ConfigError(
                f"{asked} given for --replay; domain {domain.name} knows: {formats}",
                code="replay_format",
                hint="add --format",
            )
        replay = repo_function(domain.repo, domain.replays[request.format])
        return _source(replay(domain.schemas, request.replay, partitions))
    if request.format is not None:
        raise ConfigError("--format goes with --replay", code="replay_missing", hint="add --replay FILE")
    if domain.generator is None:
        raise ConfigError(
            f"domain {domain.name} has no generator", code="no_generator", hint="use --replay, or declare `generator`"
        )
    options = GenerateOptions(
        events=request.events,
        seed=request.seed,
        partitions=partitions,
        grace_ms=domain.lateness.grace_ms,
        allowed_lateness_ms=domain.lateness.allowed_lateness_ms,
        max_future_ms=domain.lateness.max_future_ms,
        sizes=request.sizes,
        faults=request.faults,
    )
    return _source(repo_function(domain.repo, domain.generator)(domain.schemas, options))


def _source(made: Any) -> EventSource:
    source: EventSource = made
    return source


def _given(options: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}


def _lines(clock: Callable[[], float]) -> Progress:
    """Progress as a line every other second."""
    due: float | None = None

    def show(done: int, total: int) -> None:
        nonlocal due
        now = clock()
        due = now + _SECONDS_BETWEEN_LINES if due is None else due
        if now >= due:
            due = now + _SECONDS_BETWEEN_LINES
            say(f"produced {done:,} of {total:,}")

    return show
