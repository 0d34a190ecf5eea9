"""Layouts of the datasets, one module each."""

from collections.abc import Callable

from .base import Folder, Layout

# Name in a bundle's metadata to what makes the layout; further keys of the metadata's entry are its arguments.
LAYOUTS: dict[str, Callable[..., Layout]] = {}

__all__ = ["LAYOUTS", "Folder", "Layout"]
