"""Optional packages of the demo, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

#: Module to import -> the name it is installed under.
DEMO_PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class MissingPackageError(RuntimeError):
    """A package that only the demo needs is not installed."""


def require(module: str) -> Any:
    """Import ``module`` (dotted name); say how to install it where it is missing.

    Raises:
        MissingPackageError: the package is not installed.
    """
    package = module.split(".", maxsplit=1)[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".", maxsplit=1)[0] != package:
            raise
        name = DEMO_PACKAGES.get(package, package)
        raise MissingPackageError(
            f"the demo needs {name}, which is not installed; install it with: pip install {name}"
        ) from error
