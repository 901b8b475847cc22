"""The end of `run`, for people: what came in, where it went, that it adds up, and a served feature vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from beam_pipelines.cli.output import emit_table


def print_summary(document: Mapping[str, Any]) -> None:
    """`document` is what `--output json` prints."""
    console = Console(highlight=False, soft_wrap=True)
    d = document
    emit_table(
        f"Run {d['run_id']}: {d['mode']} on {d['runner']}, {d['epochs']} epoch{'' if d['epochs'] == 1 else 's'}, "
        f"{d['processed']:,} events in {d['seconds']:.1f} s ({d['events_per_second']:,.0f}/s)",
        ("layer", "rows", "adds up as"),
        [
            ("consumed", d["consumed"], "bronze + bronze dead letters"),
            ("bronze", d["bronze"], "silver + duplicates + silver dead letters"),
            ("bronze dead letters", d["bronze_dlq"], None),
            ("silver", d["silver"], None),
            ("duplicates", d["duplicates"], None),
            ("silver dead letters", d["silver_dlq"], None),
            ("late (in the rows above)", d["late"], None),
            *((f"gold {view}", rows, "entities x tiles") for view, rows in d["gold"].items()),
            ("written online by this run", d["online_rows"], None),
        ],
    )
    console.print("\nThe accounts balance." if d["balanced"] else "\nThe accounts DO NOT balance.")
    sample = d["online_sample"]
    if sample is not None:
        console.print(f"\nServed online, {sample['view']} of {sample['entity']}:")
        for name, value in sample["features"].items():
            console.print(f"  {name:<24} {value}", markup=False)
    console.print(f"\nTables (Delta) in {d['warehouse']}:", markup=False)
    for name, version in d["tables"].items():
        console.print(f"  {name:<32} version {version}", markup=False)
