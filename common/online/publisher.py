"""The publisher of a feature view's online rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from common.domain import FeatureView
from common.lake import Lake
from common.online.feast_redis import OnlineStore
from common.online.staging import discard_staged, newest_rows, read_staged
from common.publish import Epoch


@dataclass(frozen=True)
class OnlinePublisher:
    """Publishes one view to the online store of Feast's project. `redis_url` carries no password."""

    lake: Lake
    view: FeatureView
    project: str
    redis_url: str

    def publish(self, epoch: Epoch, staged: Sequence[bytes]) -> Mapping[str, int]:  # noqa: ARG002
        """Writes the newest staged row of each entity; `online_rows` counts those that were not older than stored.

        A repeat of the last epoch writes the same values again. Staged files go only after every write succeeded, so
        a missing one was published.
        """
        tables = [table for table in (read_staged(self.lake, descriptor) for descriptor in staged) if table is not None]
        if not tables:
            return {"online_rows": 0}
        with OnlineStore(self.redis_url, self.project) as store:
            written = store.write(self.view, newest_rows(self.view, pa.concat_tables(tables)))
        discard_staged(self.lake, staged)
        return {"online_rows": written}
