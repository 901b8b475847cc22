"""Feast offline store on Delta gold tables, in Polars.

Feast's own dask store reads every Parquet file in a table's folder, also those that are staged but not committed or
that a batch run replaced, and lets the wall clock choose between panes. This one reads what the log names and
chooses as the rest of the project does (`current_panes`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import FeatureView, FileSource, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_requested_feature_views_to_features_dict

from common.lake import Lake, current_panes, scan

LABEL_TIME = "event_timestamp"


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """`offline_store:` of feature_store.yaml. It has no settings."""

    type: Literal["beam_pipelines.serving.offline_store.DeltaOfflineStore"] = (
        "beam_pipelines.serving.offline_store.DeltaOfflineStore"
    )


class DeltaRetrievalJob(RetrievalJob):
    """A lazy result: tables are read when it is asked for a frame."""

    def __init__(
        self,
        evaluate: Callable[[], pl.DataFrame],
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self._evaluate().to_arrow(compat_level=pl.CompatLevel.oldest())


class DeltaOfflineStore(OfflineStore):
    """Training sets (`get_historical_features`) and the reads that `feast materialize` makes."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,  # noqa: ARG004
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **_kwargs: Any,
    ) -> RetrievalJob:
        """Joins to each label row (entity keys, `event_timestamp`) the features known at its time.

        Of each view: the newest tile that ended at or before the label's time and at most the view's ttl earlier;
        nulls if there is none. Label rows keep their order and their other columns.
        """
        if not isinstance(entity_df, pd.DataFrame) or LABEL_TIME not in entity_df or entity_df.empty:
            raise ValueError(f"entity_df must be a pandas DataFrame with rows and a column {LABEL_TIME}")
        requested, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, [])

        def evaluate() -> pl.DataFrame:
            times = pd.to_datetime(entity_df[LABEL_TIME], utc=True).astype("datetime64[us, UTC]")
            labels = pl.from_pandas(entity_df.assign(**{LABEL_TIME: times})).with_row_index("_row").sort(LABEL_TIME)
            for view, features in requested.items():
                labels = _join_view(labels, view, features, full_feature_names)
            return labels.sort("_row").drop("_row")

        times = entity_df[LABEL_TIME]
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[name for name in entity_df.columns if name != LABEL_TIME],
            min_event_timestamp=times.min(),
            max_event_timestamp=times.max(),
        )
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return DeltaRetrievalJob(evaluate, full_feature_names, on_demand, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,  # noqa: ARG004
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The newest tile of each entity that ended within [start_date, end_date]."""
        columns = [*join_key_columns, *feature_name_columns, timestamp_field, created_timestamp_column]
        rows = _current(data_source, join_key_columns, start_date, end_date)
        newest = rows.sort(timestamp_field).unique(join_key_columns, keep="last")
        return DeltaRetrievalJob(newest.select([name for name in columns if name]).collect)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,  # noqa: ARG004
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every tile that ended within [start_date, end_date], as its current pane has it."""
        columns = [*join_key_columns, *feature_name_columns, timestamp_field, created_timestamp_column]
        rows = _current(data_source, join_key_columns, start_date, end_date)
        return DeltaRetrievalJob(rows.select([name for name in columns if name]).collect)


def _current(source: DataSource, keys: list[str], start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """Current rows of the table behind a source whose tiles ended within [start, end]."""
    if not isinstance(source, FileSource):
        raise ValueError(f"{source.name} is no FileSource on a Delta table")
    warehouse, table = source.path.rsplit("/", 1)
    panes = scan(Lake(warehouse), table)
    tile_end = pl.col(source.timestamp_field)
    if start is not None:
        panes = panes.filter(tile_end >= _utc(start))
    if end is not None:
        panes = panes.filter(tile_end <= _utc(end))
    return current_panes(panes, keys)


def _utc(time: datetime) -> datetime:
    """Feast takes a time without a zone for UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _join_view(labels: pl.DataFrame, view: FeatureView, features: list[str], full_names: bool) -> pl.DataFrame:
    """Adds a view's features to label rows that are sorted by time."""
    keys = [column.name for column in view.entity_columns]
    label_keys = [view.projection.join_key_map.get(key, key) for key in keys]
    ttl = view.ttl if view.ttl else None
    first, last = labels[LABEL_TIME][0], labels[LABEL_TIME][-1]
    rows = _current(view.batch_source, keys, first - ttl if ttl else None, last)
    time = view.batch_source.timestamp_field
    prefix = f"{view.projection.name_to_use()}__" if full_names else ""
    tiles = rows.select(
        *[pl.col(key).alias(label_key) for key, label_key in zip(keys, label_keys, strict=True)],
        pl.col(time).alias("_tile_end"),
        *[pl.col(feature).alias(prefix + feature) for feature in features],
    ).sort("_tile_end")
    return labels.join_asof(
        tiles.collect(),
        left_on=LABEL_TIME,
        right_on="_tile_end",
        by=label_keys,
        strategy="backward",
        tolerance=ttl,
        check_sortedness=False,  # polars cannot check it by group; both sides were sorted just now
    ).drop("_tile_end", strict=False)
