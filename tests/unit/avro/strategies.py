"""Hypothesis strategies: Avro schemas together with values that fit them."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any, NamedTuple

from hypothesis import strategies as st

UTC = dt.UTC
_INT = st.integers(-(2**31), 2**31 - 1)
_LONG = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(max_size=20)


class Typed(NamedTuple):
    """A schema and a strategy for its values."""

    schema: Any
    values: st.SearchStrategy[Any]


def _millis(low: dt.datetime, high: dt.datetime, **kwargs: Any) -> st.SearchStrategy[dt.datetime]:
    moments = st.datetimes(low, high, **kwargs)
    return moments.map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))


_OLD, _NEW = dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)

PLAIN = [
    Typed("null", st.none()),
    Typed("boolean", st.booleans()),
    Typed("int", _INT),
    Typed("long", _LONG),
    Typed("float", st.floats(width=32)),
    Typed("double", st.floats()),
    Typed("bytes", st.binary(max_size=40)),
    Typed("string", _TEXT),
]

LOGICAL = [
    Typed({"type": "int", "logicalType": "date"}, st.dates(_OLD.date(), _NEW.date())),
    Typed({"type": "long", "logicalType": "time-micros"}, st.times()),
    Typed({"type": "long", "logicalType": "timestamp-millis"}, _millis(_OLD, _NEW, timezones=st.just(UTC))),
    Typed({"type": "long", "logicalType": "timestamp-micros"}, st.datetimes(_OLD, _NEW, timezones=st.just(UTC))),
    Typed({"type": "long", "logicalType": "local-timestamp-micros"}, st.datetimes(_OLD, _NEW)),
    Typed(
        {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 4},
        st.decimals(Decimal(-(10**25)), Decimal(10**25), places=4),
    ),
]


@st.composite
def records(draw: st.DrawFn, *, logical: bool) -> Typed:
    """A record schema of up to 6 fields and 3 levels, named types unique, and a strategy for its values."""
    names = (f"Type{number}" for number in itertools.count())
    leaves = PLAIN + (LOGICAL if logical else [])

    def typed(depth: int) -> Typed:
        kinds = ["leaf", "leaf", "leaf", "enum", "fixed", "optional"] + (["array", "map", "record"] if depth else [])
        match draw(st.sampled_from(kinds)):
            case "enum":
                symbols = [f"S{number}" for number in range(draw(st.integers(1, 4)))]
                return Typed({"type": "enum", "name": next(names), "symbols": symbols}, st.sampled_from(symbols))
            case "fixed":
                size = draw(st.integers(1, 9))
                schema = {"type": "fixed", "name": next(names), "size": size}
                return Typed(schema, st.binary(min_size=size, max_size=size))
            case "optional":
                inner: Typed = draw(st.sampled_from([leaf for leaf in leaves if leaf.schema != "null"]))
                branches = draw(st.permutations(["null", inner.schema]))
                return Typed(branches, st.none() | inner.values)
            case "array":
                inner = typed(depth - 1)
                return Typed({"type": "array", "items": inner.schema}, st.lists(inner.values, max_size=4))
            case "map":
                inner = typed(depth - 1)
                return Typed({"type": "map", "values": inner.schema}, st.dictionaries(_TEXT, inner.values, max_size=4))
            case "record":
                return record(depth - 1)
            case _:
                leaf: Typed = draw(st.sampled_from(leaves))
                return leaf

    def record(depth: int) -> Typed:
        name = next(names)
        fields = {f"f{number}": typed(depth) for number in range(draw(st.integers(1, 5)))}
        schema = {
            "type": "record",
            "name": name,
            "fields": [{"name": key, "type": field.schema} for key, field in fields.items()],
        }
        return Typed(schema, st.fixed_dictionaries({key: field.values for key, field in fields.items()}))

    return record(2)
