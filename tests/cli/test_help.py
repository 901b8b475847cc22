"""Every command and option says what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from beam_pipelines.cli.main import app
from tests.cli.conftest import Cli


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_commands_of_the_first_issue_exist() -> None:
    assert {("run",), ("services", "up"), ("services", "down"), ("services", "status"), ("produce",)} <= COMMANDS.keys()
    assert {("doctor",), ("status",), ("config",)} <= COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help(cli: Cli, path: tuple[str, ...]) -> None:
    outcome = cli(*path, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.lstrip().startswith("Usage:")
    assert "Traceback" not in outcome.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_nothing_is_unexplained(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    assert [option.name for option in command.params if option.param_type_name == "option" and not option.help] == []
