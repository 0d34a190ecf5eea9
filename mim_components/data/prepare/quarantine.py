"""Handling of bad volumes: how many may be left out, and the files that list them and what was passed over."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.volumes import BadVolume, BadVolumesError, DataError, PassedOver
from mim_components.utils.files import write_text_safely

logger = logging.getLogger(__name__)

ON_BAD = ("stop", "exclude")
QUARANTINE = "quarantine.jsonl"
PASSED_OVER = "passed_over.jsonl"
MAX_BAD_FRACTION = 0.05


def check_on_bad(on_bad: str, max_bad_fraction: float) -> None:
    """Refuse wrong settings.

    Raises:
        DataError: names the setting.
    """
    if on_bad not in ON_BAD:
        raise DataError(f"on_bad must be one of {ON_BAD}, got {on_bad=}.")
    number = isinstance(max_bad_fraction, (int, float)) and not isinstance(max_bad_fraction, bool)
    if not number or not 0 <= max_bad_fraction <= 1:
        raise DataError(f"max_bad_fraction must be from 0 to 1, got {max_bad_fraction!r}.")


def refuse_bad(bad: Sequence[BadVolume], total: int, on_bad: str, max_bad_fraction: float) -> None:
    """Stop because of bad volumes, unless they are to be left out and are few enough.

    Args:
        bad: all bad volumes.
        total: number of volumes found.
        on_bad: "stop" or "exclude".
        max_bad_fraction: largest share of the volumes found that may be left out.

    Raises:
        BadVolumesError: lists all.
    """
    if bad and on_bad == "stop":
        raise BadVolumesError(bad, total)
    # 0.05 is not exact in floats: 1 of 20 is allowed
    if len(bad) > max_bad_fraction * total + 1e-9:
        raise BadVolumesError(bad, total, max_bad_fraction)


def settle_bad(
    bad: Sequence[BadVolume], total: int, on_bad: str, max_bad_fraction: float, folder: str | Path | None
) -> None:
    """List the bad volumes of a run, then stop if `refuse_bad` does.

    Args:
        bad: all bad volumes.
        total: number of volumes found.
        on_bad: "stop" or "exclude".
        max_bad_fraction: largest share of the volumes found that may be left out.
        folder: folder of the list; None = no list.
    """
    if folder is not None:
        write_quarantine(folder, bad)
    refuse_bad(bad, total, on_bad, max_bad_fraction)


def write_quarantine(folder: str | Path, bad: Sequence[BadVolume]) -> None:
    """List the bad volumes of a run in `quarantine.jsonl`, one JSON object per line; no file if there are none.

    An object holds `path`, `digest` (sha256 of the concatenated files, null if they cannot be read), `state`
    (number, bytes and time of the files, null if one is missing) and `reason`. A folder that cannot be written is
    only a warning, since the log has the list too.

    Args:
        folder: run folder.
        bad: all bad volumes.
    """
    rows = [{"path": item.path, "digest": item.digest, "state": item.state, "reason": item.cause} for item in bad]
    _write_list(Path(folder) / QUARANTINE, rows, "bad volume", "bad volumes")


def write_passed_over(folder: str | Path, passed: Sequence[PassedOver]) -> None:
    """List what a run passed over in `passed_over.jsonl`: `path`, `how` and `reason`; see `write_quarantine`.

    Args:
        folder: run folder.
        passed: label maps and the like.
    """
    rows = [{"path": str(item.source), "how": item.how, "reason": item.reason} for item in passed]
    _write_list(Path(folder) / PASSED_OVER, rows, "file passed over", "files passed over")


def _write_list(path: Path, rows: Sequence[Mapping[str, Any]], noun: str, nouns: str) -> None:
    try:
        if rows:
            write_text_safely(path, "".join(f"{json.dumps(row)}\n" for row in rows))
            logger.info("%s listed in %s", f"{len(rows):,} {noun if len(rows) == 1 else nouns}", path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s: the list of %s cannot be written: %s", path, nouns, error)
