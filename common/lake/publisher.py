"""The publisher of a table: commits an epoch's staged files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.lake.staging import decode_staged
from common.lake.transaction import Mode, commit, create_table
from common.lake.warehouse import Lake, TableSpec
from common.publish import Epoch


@dataclass(frozen=True)
class LakePublisher:
    """Publishes to one table. `writer` tells apart the writers of one table in one job (see `commit`)."""

    lake: Lake
    spec: TableSpec
    mode: Mode
    writer: str

    def publish(self, epoch: Epoch, staged: Sequence[bytes]) -> Mapping[str, int]:
        """One version of the table with all staged files; the table exists afterwards even if there are none.

        Returns `rows.<table>`: the rows that the descriptors stand for, also for an epoch that was published before.
        """
        files = [file for descriptor in staged for file in decode_staged(descriptor)]
        if files or self.mode == "overwrite":
            commit(self.lake, self.spec, epoch, files, mode=self.mode, writer=self.writer)
        else:
            create_table(self.lake, self.spec)
        return {f"rows.{self.spec.name}": sum(file.rows for file in files)}
