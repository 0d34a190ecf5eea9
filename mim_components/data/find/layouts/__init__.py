"""Folder layouts of the datasets, one module each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mim_components.data.find.layouts.amos22 import Amos22
from mim_components.data.find.layouts.base import Folder, Layout
from mim_components.data.find.layouts.brats2021 import brats2021
from mim_components.data.find.layouts.btcv import btcv
from mim_components.data.find.layouts.ccccii import CcCcii
from mim_components.data.find.layouts.covid19 import covid19
from mim_components.data.find.layouts.decathlon import TASKS, Decathlon
from mim_components.data.find.layouts.flare22 import flare22
from mim_components.data.find.layouts.mmwhs import mmwhs

# Name in a bundle's metadata to the layout's constructor; further keys of the entry are its arguments.
LAYOUTS: dict[str, Callable[..., Layout]] = {
    "btcv": btcv,
    "mmwhs": mmwhs,
    "decathlon": Decathlon,
    "amos22": Amos22,
    "flare22": flare22,
    "covid19": covid19,
    "brats2021": brats2021,
    "ccccii": CcCcii,
}


def all_layouts() -> Iterator[Layout]:
    """All known layouts, including every task of the Decathlon."""
    for name, make in LAYOUTS.items():
        if name == "decathlon":
            yield from (make(task=task) for task in TASKS)
        else:
            yield make()


__all__ = ["LAYOUTS", "Folder", "Layout", "all_layouts"]
