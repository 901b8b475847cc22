"""`doctor`: is everything there that a run needs? A line per check, with the command to type next."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from beam_pipelines.cli.output import Format, OutputOption, emit_json
from common.config import load_settings

if TYPE_CHECKING:
    from beam_pipelines.cli.checks import Check

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    repo: Annotated[Path | None, typer.Option(help="The domain's folder. Default: feature_repo")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder of services, state, tables. Default: .pipelines")
    ] = None,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Kafka. Default: an embedded broker.")] = None,
    registry_url: Annotated[str | None, typer.Option(help="Schema registry. Default: an embedded one.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis, without password. Default: embedded Valkey.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also start Spark and run a job (10 s or more).")] = False,
    output: Annotated[Format, OutputOption] = Format.TEXT,
) -> int:
    """Check this machine, the domain and the services, and say what to type next.

    Changes nothing. Exit code 1 if a check failed: a run would not work.
    """
    from beam_pipelines.cli.checks import State, check_all

    given = {"bootstrap_servers": bootstrap_servers, "registry_url": registry_url, "redis_url": redis_url}
    settings = load_settings({"repo": repo, "state_dir": state_dir, **given})
    console = Console(file=sys.stdout, highlight=False)
    checks = []
    for check in check_all(settings, deep=deep):
        checks.append(check)
        if output is Format.TEXT:
            console.print(_line(check), soft_wrap=True)  # at once: a server that is away takes seconds
    failed = any(check.state is State.FAIL for check in checks)
    if output is Format.JSON:
        emit_json({"checks": [asdict(check) for check in checks], "ok": not failed})
    elif not failed:
        console.print("\nready: python -m beam_pipelines run", soft_wrap=True)
    return 1 if failed else 0


def _line(check: Check) -> Text:
    line = Text.assemble((f"{check.state:<5}", STYLES[check.state]), f"{check.name:<10}{check.detail}")
    if check.next:
        line.append(f"\n{'':<15}next: {check.next}", style="bold")
    return line
