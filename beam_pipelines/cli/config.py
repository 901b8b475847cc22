"""`config`: every setting, its value, and where the value is from."""

from __future__ import annotations

from typing import Annotated

from beam_pipelines.cli.output import Format, OutputOption, emit_json, emit_table
from common.config import load_settings


def config(output: Annotated[Format, OutputOption] = Format.TEXT) -> None:
    """Show the settings: default < pipelines.yaml < PIPELINES_* in the environment < flag."""
    rows = load_settings({}).rows()
    if output is Format.JSON:
        emit_json({name: {"value": value, "source": source} for name, value, source in rows})
    else:
        emit_table("Settings", ("setting", "value", "source"), rows)
