"""Checks of addresses of MLflow stores."""

from __future__ import annotations

import os
from pathlib import Path

from mim_components.utils.text import mask_secrets

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
FORMS = "http://host:5000, https://host, sqlite:////absolute/path/mlruns.db, postgresql://user@host/database"


def check_tracking_uri(uri: str) -> None:
    """Refuse an address that cannot be a store.

    Raises:
        ValueError: it cannot; names valid forms, or the folder of an sqlite file that cannot be created.

    Example:
        >>> check_tracking_uri("http://localhost:5000")
        >>> check_tracking_uri("localhost:5000")
        Traceback (most recent call last):
        ...
        ValueError: 'localhost:5000' is not an address of an MLflow store; examples: http://host:5000, https://host, ...
    """
    scheme, separator, rest = uri.partition("://")
    kind = scheme.split("+")[0]
    if not (separator and rest.rpartition("@")[2] and kind in SCHEMES) and scheme != "databricks":
        raise ValueError(f"{mask_secrets(uri)!r} is not an address of an MLflow store; examples: {FORMS}.")
    if kind == "sqlite":
        path = Path(rest.removeprefix("/").partition("?")[0])
        if not path.name or path.is_dir():
            raise ValueError(f"{uri!r} names no file; expected one such as sqlite:////absolute/path/mlruns.db.")
        nearest = next((each for each in path.absolute().parents if each.exists()), Path("/"))
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ValueError(f"{uri!r}: there is no folder {path.parent}, and it cannot be created in {nearest}.")
