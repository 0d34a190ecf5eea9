"""Cache of the results of deterministic transforms: MONAI's, with intact files that are never stale."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import monai
from monai.data import PersistentDataset
from monai.data.utils import pickle_hashing
from monai.utils import convert_to_tensor

from mim_components import __version__
from mim_components.data.names import hide, names_of_item
from mim_components.data.state import STATE, is_unchanged, paths_of, state_of, state_text
from mim_components.data.volumes import ItemError
from mim_components.utils.files import text_digest, write_safely
from mim_components.utils.tensor_files import DamagedCheckpointError, read_checkpoint, save_to
from mim_components.utils.text import root_cause

logger = logging.getLogger(__name__)

# Part of the key; raise it when what a transform of this package returns changes without its options.
FORMAT = 1


class TransformCache(PersistentDataset):
    """`PersistentDataset` that checks what it reads and writes atomically.

    A file belongs to the content of a scan (`digest` of its item; else number, size and time of its files), to the
    transforms, and to the versions of MONAI and this package: if one changes, it is regenerated. A damaged or missing
    file is regenerated as long as the scan is unchanged since it was checked (`state` of its item); a full disk costs
    the cache, not the training. Items come back as plain tensors without metadata.

    Args:
        data: items; `source` names them in messages.
        transform: deterministic transforms.
        cache_dir: folder of the cache; None = no cache.

    Raises:
        ItemError: when read, the transforms fail on an item, or its scan has changed; names the scan, the
            cause and the file of the cache.

    Example:
        >>> TransformCache([{"image": 2}], lambda item: {"image": 10 * item["image"]}, cache_dir=None)[0]
        {'image': 20}
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[..., Any], cache_dir: str | Path | None
    ) -> None:
        super().__init__(data, transform, cache_dir, hash_func=_item_hash, hash_transform=pickle_hashing)
        self._writable = cache_dir is not None

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> Any:
        path, found = self._path(item_transformed), ""
        if path is not None and path.is_file():
            try:
                return read_checkpoint(path)
            except (DamagedCheckpointError, FileNotFoundError) as error:
                logger.warning("%s; it is regenerated.", error)
                found = str(error)
        made = self._make(item_transformed, found or (f"{path}: no such file." if path is not None else ""))
        if path is not None and self._writable:
            self._write(path, made)
        return made

    def _make(self, item: Mapping[str, Any], found: str) -> Any:
        """Transform an item; `found` says why it does not come from the cache."""
        name = item.get("source", item.get("name", "an item"))
        try:
            made = self._pre_transform(deepcopy({key: value for key, value in item.items() if key != STATE}))
        except Exception as error:  # a worker passes on only the text, which must name the scan and the cause
            hidden = names_of_item(item)
            cause = hide(str(root_cause(error)), hidden)
            raise ItemError(f"{name}: {cause}{_cache_file(found)}") from (None if hidden else error)
        if not is_unchanged(item):  # after reading, to notice a change meanwhile
            raise ItemError(
                f"{name}: its files have changed since they were checked.{_cache_file(found)} Restore them; the same "
                "command then continues."
            )
        return convert_to_tensor(made, convert_numeric=False, track_meta=False)

    def _path(self, item: Mapping[str, Any]) -> Path | None:
        if self.cache_dir is None or not (found := self.hash_func(item)):
            return None
        versions = f"{FORMAT} {__version__} {monai.__version__}"
        name = text_digest(f"{versions}\n{found.decode()}{self.transform_hash}")[:32]
        return Path(self.cache_dir) / f"{name}.pt"

    def _write(self, path: Path, made: Any) -> None:
        try:
            write_safely(path, lambda partial: save_to(partial, made))
        except OSError as error:
            self._writable = False
            logger.warning("%s; the run continues without writing to the cache.", error)


def _cache_file(found: str) -> str:
    return f" (In the cache: {found.rstrip('.')}.)" if found else ""


def _item_hash(item: Mapping[str, Any]) -> bytes:
    """Hash of the content, or else the state of the files, and of all values; empty if that state is unknown."""
    values, paths = [f"{name}={item[name]}" for name in sorted(item) if name != STATE], [*paths_of(item)]
    if "digest" not in item and paths:
        state = state_text(state_of(paths))
        if not state:
            return b""
        values.append(state)
    return text_digest("\n".join(values)).encode()
