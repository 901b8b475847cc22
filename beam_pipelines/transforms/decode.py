"""`Decode`: raw Kafka records to event columns, by the schema each was written with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.transforms.outputs import count, dead
from common.avro.decode import Decoder
from common.avro.framing import NOT_FRAMED, unframe
from common.avro.schema import AvroSchemaError
from common.domain import Domain
from common.records import ORIGIN_FIELDS, RAW_BYTES_FIELDS, decoded_schema
from common.schema_registry import UnknownSchemaId

STEP = "bronze/decode"

NOT_CONFLUENT_FRAMED = "not_confluent_framed"
UNKNOWN_SCHEMA_ID = "unknown_schema_id"
INCOMPATIBLE_SCHEMA = "incompatible_schema"
MALFORMED_AVRO = "malformed_avro"

_TRAVELLING_FIELDS = (*ORIGIN_FIELDS, *RAW_BYTES_FIELDS)  # RAW_SCHEMA's columns in order, renamed

Verdicts = list[tuple[npt.NDArray[np.int64], str, list[str | None]]]


class WriterSchemas(Protocol):
    """Where writer schemas come from: the schema registry, or a fixed set in tests. Picklable."""

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        """Raises UnknownSchemaId if no schema has the id; anything else is an outage and fails the bundle."""
        ...


class Decode(beam.DoFn):
    """RAW batch -> one decoded batch in the same order, and dead letters with raw bytes.

    A row dies when it is not framed (a tombstone is not either), its schema id is unknown, the schema is not of this
    event, or the body is malformed (`detail` says how). Rows of several writer schemas may mix in a batch.
    """

    def __init__(self, writer_schemas: WriterSchemas, domain: Domain) -> None:
        self._writer_schemas = writer_schemas
        self._domain = domain
        self._schema = decoded_schema(domain.event_schema)

    def setup(self) -> None:
        self._decoders: dict[int, Decoder | str] = {}  # or the reason why there is none

    def process(self, raw: pa.RecordBatch) -> Iterator[pa.RecordBatch | TaggedOutput]:
        count("consumed", raw.num_rows)
        framed = unframe(raw.column("value"))
        travelling = _renamed(raw)
        parts: list[pa.RecordBatch] = []
        positions: list[npt.NDArray[np.int64]] = []
        verdicts: Verdicts = []
        for schema_id in np.unique(framed.schema_ids).tolist():
            rows = np.flatnonzero(framed.schema_ids == schema_id)
            decoder = self._decoder(schema_id)
            if isinstance(decoder, str):
                verdicts.append((rows, decoder, [None] * len(rows)))
                continue
            result = decoder.decode(framed.bodies if len(rows) == raw.num_rows else framed.bodies.take(pa.array(rows)))
            parts.append(result.batch)
            positions.append(rows[result.good])
            if len(result.bad):
                verdicts.append((rows[result.bad], MALFORMED_AVRO, list(result.reasons)))
        if verdicts:
            yield self._dead(travelling, framed.schema_ids, verdicts)
        if any(len(each) for each in positions):
            yield self._good(travelling, framed.schema_ids, parts, positions)

    def _good(
        self,
        travelling: pa.RecordBatch,
        schema_ids: npt.NDArray[np.int32],
        parts: list[pa.RecordBatch],
        positions: list[npt.NDArray[np.int64]],
    ) -> pa.RecordBatch:
        events, rows = parts[0], positions[0]
        if len(parts) > 1:
            rows = np.concatenate(positions)
            order = np.argsort(rows)
            events, rows = pa.concat_batches(parts).take(pa.array(order)), rows[order]
        if len(rows) < travelling.num_rows:
            travelling = travelling.take(pa.array(rows))
        columns = [*events.columns, pa.array(schema_ids[rows]), *travelling.columns]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _dead(self, travelling: pa.RecordBatch, schema_ids: npt.NDArray[np.int32], verdicts: Verdicts) -> TaggedOutput:
        rows = np.concatenate([rows for rows, _, _ in verdicts])
        ids = schema_ids[rows]
        failed = travelling.take(pa.array(rows)).append_column("_schema_id", pa.array(ids, mask=ids == NOT_FRAMED))
        reasons = [reason for failing, reason, _ in verdicts for _ in failing]
        return dead(STEP, failed, reasons, [detail for _, _, details in verdicts for detail in details])

    def _decoder(self, schema_id: int) -> Decoder | str:
        if schema_id not in self._decoders:
            self._decoders[schema_id] = self._make_decoder(schema_id)
        return self._decoders[schema_id]

    def _make_decoder(self, schema_id: int) -> Decoder | str:
        if schema_id == NOT_FRAMED:
            return NOT_CONFLUENT_FRAMED
        try:
            writer = dict(self._writer_schemas.schema(schema_id))
        except UnknownSchemaId:
            return UNKNOWN_SCHEMA_ID
        canonical = dict(self._domain.canonical_schema)
        # Another record's bytes may decode happily: only a record of the event's name is an event.
        if _full_name(writer) != _full_name(canonical):
            return INCOMPATIBLE_SCHEMA
        try:
            return Decoder(writer, canonical)
        except AvroSchemaError:
            return INCOMPATIBLE_SCHEMA


def _full_name(schema: Mapping[str, Any]) -> str:
    name = str(schema.get("name"))
    return name if "." in name else f"{schema.get('namespace', '')}.{name}"


def _renamed(raw: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(raw.columns, schema=pa.schema(_TRAVELLING_FIELDS))
