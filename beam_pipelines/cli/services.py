"""`services up|down|status`: the embedded Kafka, schema registry and Valkey."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from beam_pipelines.cli.output import Format, OutputOption, emit_json, emit_table, say
from common.config import load_settings
from common.services.supervisor import Services

app = typer.Typer(help="Start, stop and look at the embedded services.", no_args_is_help=True, rich_markup_mode=None)
StateDir = Annotated[Path | None, typer.Option(help="Folder of the services' data. Default: .pipelines")]


def _services(state_dir: Path | None) -> Services:
    return Services(load_settings({"state_dir": state_dir}).state_dir, on_progress=say)


@app.command()
def up(state_dir: StateDir = None, output: Annotated[Format, OutputOption] = Format.TEXT) -> None:
    """Start what is not running. The services stay until `services down`."""
    endpoints = _services(state_dir).up()
    rows = [
        ("kafka", endpoints.bootstrap_servers),
        ("registry", endpoints.registry_url),
        ("valkey", endpoints.redis_url),
    ]
    if output is Format.JSON:
        emit_json(dict(rows))
    else:
        emit_table("Services", ("service", "address"), rows)


@app.command()
def down(state_dir: StateDir = None) -> None:
    """Stop all services. Their data stays."""
    _services(state_dir).down()


@app.command()
def status(state_dir: StateDir = None, output: Annotated[Format, OutputOption] = Format.TEXT) -> None:
    """Show which services run, where, and with how much memory."""
    found = _services(state_dir).status()
    if output is Format.JSON:
        emit_json({s.name: {"state": s.state, "address": s.address, "pid": s.pid, "rss_mb": s.rss_mb} for s in found})
    else:
        rows = [(s.name, s.state, s.address, s.pid, s.rss_mb and round(s.rss_mb), str(s.log)) for s in found]
        emit_table("Services", ("service", "state", "address", "pid", "MiB", "log"), rows)
