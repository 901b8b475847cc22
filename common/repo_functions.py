"""Functions that a feature repo declares by name, such as `generator: generator:generate` in its domain.yaml."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import ConfigError


def repo_function(repo: Path, reference: str) -> Callable[..., Any]:
    """The function `module:name`, the module relative to the repo's folder, which is imported as a package.

    Raises:
        ConfigError: the reference is not `module:name`, or leads nowhere.
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"'{reference}' is not module:function", code="repo_function", hint="correct domain.yaml")
    parent = str(repo.resolve().parent)
    if parent not in sys.path:
        sys.path.append(parent)
    full_name = f"{repo.resolve().name}.{module_name}"
    try:
        function = getattr(importlib.import_module(full_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not full_name.startswith(error.name):
            raise  # the module is there, but what it imports is not
        raise ConfigError(f"there is no module {module_name} in {repo}", code="repo_function") from None
    except AttributeError:
        raise ConfigError(f"{module_name} in {repo} has no function '{name}'", code="repo_function") from None
    if not callable(function):
        raise ConfigError(f"'{reference}' in {repo} is not a function", code="repo_function")
    return function  # type: ignore[no-any-return]
