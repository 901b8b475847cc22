"""Does everything add up? The identities of a run, over its counters and over what the tables hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from common.domain import Domain
from common.lake import Lake, row_count

NAMESPACE = "pipeline"


@dataclass(frozen=True)
class Accounts:
    """Totals over the life of a checkpoint (a stream) or of a run (a batch). `panes`: pane rows written per view."""

    consumed: int = 0
    bronze: int = 0
    bronze_dlq: int = 0
    silver: int = 0
    duplicates: int = 0
    silver_dlq: int = 0
    late: int = 0
    panes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_counters(cls, counters: Mapping[str, int], domain: Domain) -> Accounts:
        """From Beam counters named `pipeline/<name>`; a counter that was never touched is zero."""
        named = {name: counters.get(f"{NAMESPACE}/{name}", 0) for name in COLUMNS}
        panes = {view.name: counters.get(f"{NAMESPACE}/gold.{view.name}", 0) for view in domain.features}
        return cls(**named, panes=panes)

    def differences(self, lake: Lake) -> Iterator[str]:
        """Each identity that does not hold, with both sides; nothing if all is accounted for."""
        yield from _unless_equal("consumed", self.consumed, "bronze + bronze_dlq", self.bronze + self.bronze_dlq)
        right = self.silver + self.duplicates + self.silver_dlq
        yield from _unless_equal("bronze", self.bronze, "silver + duplicates + silver_dlq", right)
        counted = {"bronze": self.bronze, "silver": self.silver, "dlq": self.bronze_dlq + self.silver_dlq}
        counted |= {f"gold/{view}": panes for view, panes in self.panes.items()}
        for table, rows in counted.items():
            yield from _unless_equal(f"rows counted for {table}", rows, f"rows in {table}", row_count(lake, table))


COLUMNS = ("consumed", "bronze", "bronze_dlq", "silver", "duplicates", "silver_dlq", "late")


def _unless_equal(left: str, left_rows: int, right: str, right_rows: int) -> Iterator[str]:
    if left_rows != right_rows:
        yield f"{left} = {left_rows:,}, but {right} = {right_rows:,} (off by {right_rows - left_rows:+,})"
