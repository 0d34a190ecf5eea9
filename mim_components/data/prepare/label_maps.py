"""Label maps among the scans of a folder that was searched, recognised by their voxels and their names.

The voxels decide. The name helps in doubt: with a label map of many values, of one value or with an axis of classes, or
a damaged file. A scan that is fit is never passed over for its name.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist

from mim_components.data.prepare.quarantine import write_passed_over
from mim_components.data.volumes import BadVolume, FoundVolumes, PassedOver, PreparedVolume, suffix_of
from mim_components.utils.text import counted

logger = logging.getLogger(__name__)

WORDS = frozenset(
    "label labels labelmap labelmaps seg segs dseg probseg segmentation segmentations mask masks msk annotation "
    "annotations truth groundtruth gt".split()
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# A map of the whole body has more than a hundred labels, a scan thousands of values.
_NAMED_VALUES = 128

Result = PreparedVolume | BadVolume


def label_word(path: Path, root: Path) -> str:
    """The word in a path below the data folder that tells a label map; "" if there is none.

    Example:
        >>> names = ["labelsTr/p1.nii", "p1_seg.nii.gz", "p1-label.nrrd", "p1.seg.nrrd", "p1.nii", "segment/p1.mha"]
        >>> [label_word(Path("data", name), Path("data")) for name in names]
        ['labels', 'seg', 'label', 'seg', '', '']
    """
    below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    text = str(below).removesuffix(suffix_of(below))
    return next((word.lower() for word in _WORD.findall(text) if word.lower() in WORDS), "")


def set_apart(
    found: FoundVolumes, results: Sequence[Result]
) -> tuple[list[Result | None], list[PassedOver], list[str]]:  # fmt: skip
    """Separate label maps from the results of the preparation.

    Args:
        found: the volumes; nothing is separated unless they come from a search.
        results: result of each volume.

    Returns:
        The results, with None in place of label maps; the label maps; and notes on scans with the names of label maps.
    """
    if not found.searched:
        return list(results), [], []
    words = [label_word(source.path, found.root) for source in found]
    named = [result for word, result in zip(words, results, strict=True) if word]
    others = [result for word, result in zip(words, results, strict=True) if not word]
    # names that all volumes have, or that scans have too, tell nothing
    telling = any(isinstance(each, PreparedVolume) for each in others) and not any(map(_is_scan, named))
    kept: list[Result | None] = []
    passed: list[PassedOver] = []
    notes: list[str] = []
    for source, word, result in zip(found, words, results, strict=True):
        by_content = isinstance(result, BadVolume) and result.label_map
        if by_content or (word and telling):
            how = "content" if by_content else "name"
            reason = _cause(result) if by_content else f"called {word!r}; {_cause(result)}"
            passed.append(PassedOver(source, how, reason))
            kept.append(None)
            continue
        if word and _is_scan(result):
            notes.append(f"{source}: called {word!r}, but its voxels are those of a scan; it is used")
        kept.append(result)
    return kept, passed, notes


def settle_passed(passed: list[PassedOver], folder: str | Path | None) -> list[PassedOver]:
    """Log in one line what was passed over, and list it in a folder; None = no list."""
    if folder is not None:
        write_passed_over(folder, passed)
    if passed and idist.get_rank() == 0:
        logger.warning("%s", summary_of(passed))
    return passed


def summary_of(passed: Sequence[PassedOver]) -> str:
    """Number of files passed over, by how they were recognised.

    Example:
        >>> from mim_components.data import VolumeSource
        >>> source = VolumeSource(Path("a_seg.nii"), (Path("a_seg.nii"),))
        >>> summary_of([PassedOver(source, "name", "constant"), PassedOver(source, "content", "2 values")])
        '2 passed over that are not scans (label map by content: 1, label map by name: 1)'
    """
    counts = Counter(each.reason if each.how == "DICOM" else f"label map by {each.how}" for each in passed)
    parts = ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))
    return f"{len(passed)} passed over that are not scans ({parts})"


def _is_scan(result: Result) -> bool:
    """Whether a volume is fit and has values that no label map has."""
    if isinstance(result, BadVolume):
        return False
    return result.intensity_range[0] < -1 or result.num_values > _NAMED_VALUES


def _cause(result: Result) -> str:
    if isinstance(result, BadVolume):
        return result.cause
    return counted(result.num_values, "different value")
