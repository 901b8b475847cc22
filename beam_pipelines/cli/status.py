"""`status`: where a job stands. Services, tables, dead letters, and how far its stream is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beam_pipelines.cli.output import Format, OutputOption, emit_json, emit_table, say
from beam_pipelines.cli.run import Mode
from common.config import Settings, load_settings, without_credentials
from common.errors import PipelineError

if TYPE_CHECKING:
    from beam_pipelines.cli.job_state import CheckpointState, DeadLetters, TableState


@dataclass(frozen=True)
class ServiceState:
    """A server that the job uses. `pid` and `rss_mb` of embedded ones that run."""

    name: str
    state: str  # an embedded service's (see ServiceStatus), or of another one "running" or "unreachable"
    address: str | None
    pid: int | None = None
    rss_mb: float | None = None


def status(
    mode: Annotated[Mode, typer.Option(help="Whose tables to look at.")] = Mode.STREAM,
    warehouse: Annotated[str | None, typer.Option(help="Where the tables are. Default: below --state-dir.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The stream's checkpoint. Default: below --state-dir.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder of services, state, tables. Default: .pipelines")
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="The domain's folder. Default: feature_repo")] = None,
    output: Annotated[Format, OutputOption] = Format.TEXT,
) -> None:
    """Show services, tables, dead letters, and a stream's position and lag.

    Changes nothing, and may be called while the job runs. What is missing is said, and is no error.
    """
    from beam_pipelines.cli.job_state import checkpoint_state, dead_letters, table_states
    from beam_pipelines.cli.probes import with_running_services
    from common.domain import load_domain
    from common.lake import Lake
    from common.services.supervisor import Services

    given = {"warehouse": warehouse, "checkpoint": checkpoint, "state_dir": state_dir, "repo": repo}
    settings = load_settings(given)
    domain = load_domain(settings.repo)
    embedded = Services(settings.state_dir).status()
    reachable = with_running_services(settings, embedded)
    services = [
        ServiceState(each.name, each.state, each.address, each.pid, each.rss_mb and round(each.rss_mb))
        for each in embedded
        if each.name in settings.missing_services
    ]
    services += _configured_services(settings)
    lake = Lake(settings.warehouse_of(mode))
    tables, dead = table_states(lake, domain), dead_letters(lake)
    # A batch keeps no state between runs.
    place = settings.checkpoint_of(mode) if mode is Mode.STREAM else ""
    position = checkpoint_state(place) if place else None
    if position is not None and reachable.bootstrap_servers:
        position = _with_lag(position, reachable, settings.topic or domain.topic)
    if output is Format.JSON:
        emit_json(_document(mode, services, lake.warehouse, tables, dead, position))
    else:
        _print(services, lake.warehouse, tables, dead)
        _print_position(place, position)


def _configured_services(settings: Settings) -> Iterable[ServiceState]:
    """The services that have an address, asked now."""
    from beam_pipelines.cli.probes import ADDRESS_SETTINGS, ask_kafka, ask_redis, ask_registry

    asks: dict[str, Callable[[], object]] = {
        "kafka": lambda: ask_kafka(settings, settings.topic),
        "registry": lambda: ask_registry(settings.registry_url),
        "valkey": lambda: ask_redis(settings.redis_url),
    }
    for name, ask in asks.items():
        if name in settings.missing_services:
            continue
        try:
            ask()
            state = "running"
        except PipelineError as error:
            say(f"warning: {error}")
            state = "unreachable"
        yield ServiceState(name, state, without_credentials(getattr(settings, ADDRESS_SETTINGS[name])))


def _with_lag(position: CheckpointState, settings: Settings, topic: str) -> CheckpointState:
    try:
        return position.with_lag(settings, topic)
    except PipelineError as error:
        say(f"warning: the lag is not known: {error.message}")
        return position


def _document(
    mode: Mode,
    services: Iterable[ServiceState],
    warehouse: str,
    tables: Iterable[TableState],
    dead: Iterable[DeadLetters],
    position: CheckpointState | None,
) -> dict[str, Any]:
    def fields(value: Any) -> dict[str, Any]:
        return {name: each for name, each in asdict(value).items() if name != "name"}

    return {
        "mode": str(mode),
        "services": {service.name: fields(service) for service in services},
        "warehouse": warehouse,
        "tables": {table.name: None if table.version is None else fields(table) for table in tables},
        "dead_letters": [asdict(each) for each in dead],
        "checkpoint": None if position is None else {**asdict(position), "lag": position.lag},
    }


def _print(
    services: Iterable[ServiceState], warehouse: str, tables: Iterable[TableState], dead: Iterable[DeadLetters]
) -> None:
    emit_table(
        "Services",
        ("service", "state", "address", "pid", "MiB"),
        [(s.name, s.state, s.address, None if s.pid is None else str(s.pid), s.rss_mb) for s in services],
    )
    typer.echo(f"\nTables in {warehouse}")  # not as a title: those wrap, and a path is there to be copied
    emit_table(
        "",
        ("table", "version", "rows"),
        [(t.name, "none yet" if t.version is None else t.version, t.rows) for t in tables],
    )
    if dead:
        emit_table("\nDead letters", ("layer", "reason", "rows"), [(d.layer, d.reason, d.rows) for d in dead])


def _print_position(place: str, position: CheckpointState | None) -> None:
    if position is None:
        if place:
            typer.echo(f"\nNo epoch is committed in {place}")
        return
    typer.echo(
        f"\nEpoch {position.epoch} of {position.path}, {position.age_seconds:,.0f} s ago: "
        f"{position.consumed:,} records consumed" + ("" if position.lag is None else f", {position.lag:,} to go")
    )
    emit_table(
        "",
        ("partition", "next offset", "watermark", "lag"),
        [(each.partition, each.offset, each.watermark, each.lag) for each in position.partitions],
    )
