"""A user's window function or CombineFn in words that are the same in every run, as pickles are not.

A function is known by its name, whatever its code; an object by its class and the values of its fields.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from apache_beam import CombineFn
from apache_beam.transforms.window import WindowFn
from apache_beam.utils.timestamp import Duration, Timestamp

from spark_jobs.beam_runner.beam_internals import wrapped_callable

_PLAIN = frozenset([type(None), bool, int, float, str, Duration, Timestamp])
_NAMED = (FunctionType, BuiltinFunctionType, type)
_NO_PARAMETERS = frozenset(["_type_hints"])  # Beam's own, which come and go
_MOST = 200  # characters of all fields; they are in each manifest


def fn_words(fn: Any) -> str:
    """Of a WindowFn, a CombineFn, or the callable that Beam made one of."""
    fn = wrapped_callable(fn)
    if hasattr(fn, "__qualname__"):
        return _name(fn)
    if isinstance(fn, partial):
        fields = {"func": fn.func, "args": fn.args, "keywords": fn.keywords}
    else:
        fields = getattr(fn, "__dict__", {})
    return _name(type(fn)) + _field_words(fields)


def _name(named: Any) -> str:
    """A lambda's is the same wherever it stands in its module."""
    name = str(named.__qualname__)
    module = getattr(named, "__module__", None)
    name = "<lambda>" if name.endswith("<lambda>") else name
    return f"{module}.{name}" if module else name


def _field_words(fields: Mapping[str, Any]) -> str:
    words = ", ".join(
        f"{name}={_value_words(value)}"
        for name, value in sorted(fields.items())
        if name not in _NO_PARAMETERS and not isinstance(value, MethodType)
    )
    if len(words) > _MOST:
        return f"{{{zlib.crc32(words.encode()):08x}}}"
    return f"({words})" if words else ""


def _value_words(value: Any) -> str:
    """What has no repr that stays the same is known by its type."""
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if kind in (list, tuple):
        return f"[{', '.join(map(_value_words, value))}]"
    if kind in (set, frozenset):
        return f"{{{', '.join(sorted(map(_value_words, value)))}}}"
    if kind is dict:
        return f"{{{', '.join(sorted(f'{_value_words(k)}: {_value_words(v)}' for k, v in value.items()))}}}"
    if isinstance(value, (CombineFn, WindowFn, partial, *_NAMED)):
        return fn_words(value)
    return _name(kind)
