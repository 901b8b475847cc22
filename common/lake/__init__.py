"""Delta tables: stage files in workers, commit them once per epoch, read them back."""

from common.lake.publisher import LakePublisher
from common.lake.reader import current_panes, current_rows, read, row_count, scan
from common.lake.staging import stage
from common.lake.transaction import Mode, commit, create_table
from common.lake.warehouse import Lake, TableSpec

__all__ = [
    "Lake",
    "LakePublisher",
    "Mode",
    "TableSpec",
    "commit",
    "create_table",
    "current_panes",
    "current_rows",
    "read",
    "row_count",
    "scan",
    "stage",
]
