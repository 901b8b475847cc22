"""How fast events are decoded, encoded and produced on one core. Not part of `make test`: figures need a quiet machine.

pytest -m bench tests/bench -s
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from beam_pipelines.cli.produce import LogRequest, open_source, produce_demo
from common.avro.decode import Decoder
from common.avro.encode import Encoder
from common.avro.framing import unframe
from common.config import Settings
from common.domain import load_domain
from common.services.supervisor import Services

pytestmark = pytest.mark.bench

REPO = Path(__file__).parents[2] / "feature_repo"
ROWS = 50_000


def best_rate(work: Callable[[], object], rows: int, turns: int = 7) -> float:
    """Rows per second of processor time, of the fastest turn: other processes disturb it less than they do a clock."""
    seconds = []
    for _ in range(turns):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return rows / min(seconds)


@pytest.fixture(scope="module")
def values() -> pa.BinaryArray:
    """Framed messages of the default generator, all versions and faults mixed; half of them are of version 3."""
    source = open_source(load_domain(REPO), LogRequest(2 * ROWS), 4)
    return pa.concat_arrays([batch.values for batch in source.batches([1, 2, 3], 0, source.count)])


def test_decode(values: pa.BinaryArray) -> None:
    schemas = [dict(schema) for schema in load_domain(REPO).schemas]
    parsed = fastavro.parse_schema(schemas[-1])
    framed = unframe(values)
    rates = {}
    for version, schema in enumerate(schemas, start=1):
        bodies = framed.bodies.take(pa.array(np.flatnonzero(framed.schema_ids == version)))
        decoder = Decoder(schema, schemas[-1])
        rates[version] = best_rate(partial(decoder.decode, bodies), len(bodies))
        print(f"decode v{version}: {rates[version]:,.0f}/s ({len(bodies):,}, {len(decoder.decode(bodies).bad)} bad)")
    sound = bodies.take(pa.array(decoder.decode(bodies).good))
    sound_rate = best_rate(partial(decoder.decode, sound), len(sound))
    few = sound.slice(0, 5_000).to_pylist()
    slow = best_rate(lambda: [fastavro.schemaless_reader(io.BytesIO(body), parsed) for body in few], len(few))
    print(f"decode v3, none bad: {sound_rate:,.0f}/s; fastavro, one by one: {slow:,.0f}/s")
    # A ratio, because it holds on a busy machine too: 8 x fastavro's 60k/s is about 500k/s.
    assert rates[3] > 8 * slow


def test_encode_and_unframe(values: pa.BinaryArray) -> None:
    schema = dict(load_domain(REPO).schemas[-1])
    framed = unframe(values)
    bodies = framed.bodies.take(pa.array(np.flatnonzero(framed.schema_ids == 3)))
    batch = Decoder(schema, schema).decode(bodies).batch
    encoder = Encoder(schema)
    print(f"encode: {best_rate(lambda: encoder.encode(batch), len(batch)):,.0f}/s")
    print(f"unframe: {best_rate(lambda: unframe(values), ROWS):,.0f}/s")


def test_produce(tmp_path: Path) -> None:
    with Services(tmp_path).running(["kafka", "registry"]) as endpoints:
        settings = Settings(
            state_dir=tmp_path,
            repo=REPO,
            bootstrap_servers=endpoints.bootstrap_servers or "",
            registry_url=endpoints.registry_url or "",
        )
        produce_demo(settings.with_values("bench", topic="warm"), events=20_000)
        report = produce_demo(settings.with_values("bench", topic="measured"), events=500_000)
    print(f"produce: {report.events_per_second:,.0f}/s")
    assert report.events_per_second > 50_000
