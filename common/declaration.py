"""A declarative file's sections, read strictly: every value has a type, and nothing is silently ignored."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from common.errors import ConfigError

T = TypeVar("T")
_REQUIRED: Any = object()


class DomainError(ConfigError):
    """A feature repo's declaration cannot be used."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, code="bad_domain", hint=hint)


class Section:
    """A mapping that remembers which of its keys were read, so that the others can be refused.

    `where` names the section in errors, as in `domain.yaml.lateness`. All readers raise DomainError.
    """

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise DomainError(f"{where} must be a mapping, not {type(values).__name__}")
        self.where = where
        self._values: dict[Any, Any] = values
        self._read: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def string(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, str, default)

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        value: int = self._get(key, int, default)
        if value < 0:
            raise DomainError(f"{self.where}.{key} must not be negative")
        return value

    def strings(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        values = self._get(key, list, _REQUIRED if required else [])
        if not all(isinstance(value, str) for value in values):
            raise DomainError(f"{self.where}.{key} must be a list of strings")
        return tuple(values)

    def section(self, key: str, default: Any = _REQUIRED) -> Section:
        return Section(self._get(key, dict, default), f"{self.where}.{key}")

    def sections(self, key: str) -> list[Section]:
        """A list of mappings; [] if the key is absent."""
        return [Section(each, f"{self.where}.{key}[{i}]") for i, each in enumerate(self._get(key, list, []))]

    def sections_by_name(self) -> Iterator[tuple[str, Section]]:
        """Each key of this section is a name, each value a section."""
        for name in self._values:
            yield name, self.section(name)

    def mapping(self, value_type: type[T]) -> Mapping[str, T]:
        """The whole section, all values of one type."""
        return {key: self._get(key, value_type, _REQUIRED) for key in self._values}

    def refuse_unread(self) -> None:
        """Raises if the section has keys that no reader asked for."""
        self.check_known(self._values, self._read, "key")

    def check_known(self, names: Iterable[str], known: Sequence[str], what: str) -> None:
        """Raises for the first name that is not known, with the nearest one that is."""
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise DomainError(f"{self.where}: unknown {what} {name!r}", hint=hint)

    def _get(self, key: str, value_type: type[Any], default: Any) -> Any:
        self._read.append(key)
        value = self._values.get(key, default)
        if value is _REQUIRED:
            raise DomainError(f"{self.where}.{key} is missing")
        # bool is an int to Python, but `grace_ms: yes` is a mistake.
        if value is not default and (not isinstance(value, value_type) or (value_type is int and value is True)):
            raise DomainError(f"{self.where}.{key} must be {_article(value_type)}, not {type(value).__name__}")
        return value


def _article(value_type: type[Any]) -> str:
    return {str: "a string", int: "a whole number", list: "a list", dict: "a mapping"}[value_type]
