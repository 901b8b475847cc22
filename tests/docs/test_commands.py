"""The commands in README and docs exist: their flags are in `--help`, their make targets in the Makefile."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from beam_pipelines.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = {"bash", "sh", "shell", "console"}
FENCE = re.compile(r"\s*```(\w*)")
INLINE = re.compile(r"`(make [a-z-]+|python -m beam_pipelines [^`]+)`")
ASSIGNMENT = re.compile(r"\w+=")
OPERATORS = frozenset(["&&", "||", "|", ";", "&"])
MODULE = "beam_pipelines"


class Command(NamedTuple):
    """One simple command, and where it is written."""

    where: str
    words: tuple[str, ...]


def shell_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number, command line) of the shell blocks of a page; lines that end in a backslash are joined."""
    language, joined, first = "", "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if fence := FENCE.match(line):
            language = "" if language else fence[1] or "text"
        elif language in SHELLS:
            first = first if joined else number
            joined += line.strip().removeprefix("$ ")
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            yield first, joined
            joined = ""


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line that may have comments, assignments in front, and operators in between."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in OPERATORS:
            if words or not ASSIGNMENT.match(word):
                words.append(word)
        elif words:
            yield tuple(words)
            words = []


def commands_in(page: Path) -> Iterator[Command]:
    """Commands of shell blocks and of inline code."""
    text = page.read_text()
    lines = [*shell_lines(text), *((text[: m.start()].count("\n") + 1, m[1]) for m in INLINE.finditer(text))]
    for number, line in lines:
        for words in simple_commands(line):
            yield Command(f"{page.relative_to(ROOT)}:{number}", words)


ALL = [command for page in PAGES for command in commands_in(page)]
MODULE_COMMANDS = [c for c in ALL if Path(c.words[0]).name == "python" and c.words[1:3] == ("-m", MODULE)]
MAKE_COMMANDS = [c for c in ALL if c.words[0] == "make"]


@cache
def help_of(*path: str) -> tuple[frozenset[str], frozenset[str]]:
    """(flags, subcommands) that `python -m beam_pipelines <path> --help` lists."""
    # In this process: a new interpreter for each would take 1 to 5 s.
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    # An entry is indented by two; explanations and wrapped lines by more.
    flags = {flag for line in re.findall(r"(?m)^  (-.*)$", shown.output) for flag in re.findall(r"--[a-z][\w-]*", line)}
    _, _, listed = shown.output.partition("Commands:")
    return frozenset(flags), frozenset(re.findall(r"(?m)^  ([a-z][\w-]*)", listed))


def unknown_parts(arguments: tuple[str, ...]) -> list[str]:
    """What `--help` does not know of the arguments after `python -m beam_pipelines`."""
    path: list[str] = []
    rest = list(arguments)
    while rest and (subcommands := help_of(*path)[1]):
        if rest[0] not in subcommands:
            break
        path.append(rest.pop(0))
    flags, subcommands = help_of(*path)
    unknown = [rest[0]] if subcommands and rest and not rest[0].startswith("-") else []
    for word in rest:
        if word == "--":  # what follows is for the Beam runner
            break
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in flags and flag != "--help":
            unknown.append(flag)
    return unknown


@pytest.mark.parametrize("command", MODULE_COMMANDS, ids=lambda c: c.where)
def test_command_parses(command: Command) -> None:
    assert not unknown_parts(command.words[3:]), f"{command.where}: {shlex.join(command.words)}"


@pytest.mark.parametrize("command", MAKE_COMMANDS, ids=lambda c: c.where)
def test_make_target_exists(command: Command) -> None:
    targets = set(re.findall(r"(?m)^([a-z][\w-]*):", (ROOT / "Makefile").read_text()))
    wanted = {word for word in command.words[1:] if "=" not in word}
    assert wanted <= targets, command.where


def test_pages_hold_commands() -> None:
    """The tests above would pass on pages of which nothing was understood."""
    written = {command.words[3] for command in MODULE_COMMANDS}
    assert {"run", "services", "produce", "doctor", "status", "config"} <= written
    assert ("make", "run") in {command.words for command in MAKE_COMMANDS}


def test_wrong_commands_are_told() -> None:
    assert unknown_parts(("run", "--repoo", "x", "--", "--spark_master=local")) == ["--repoo"]
    assert unknown_parts(("services", "upp")) == ["upp"]
    assert unknown_parts(("rum",)) == ["rum"]


def test_shell_blocks_are_read() -> None:
    shell = "```bash\nA=1 make run && python -m beam_pipelines run \\\n  --events 1  # note\n```\n"
    page = shell + "```text\nmake no\n```\n"
    lines = list(shell_lines(page))
    assert [number for number, _ in lines] == [2]
    assert list(simple_commands(lines[0][1])) == [
        ("make", "run"),
        ("python", "-m", "beam_pipelines", "run", "--events", "1"),
    ]
