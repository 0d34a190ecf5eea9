"""The folder of one run: new or continued, its settings, and its summary at the end."""

from __future__ import annotations

import json
import logging
import shlex
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from filelock import FileLock, Timeout

from mim_components import __version__
from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.configuration import current_config, differences
from mim_components.run.options import free_keys
from mim_components.utils.files import FullDiskError, remove_partials, write_text_safely
from mim_components.utils.tensor_files import CONTRACT_VERSION, OtherVersionError
from mim_components.utils.text import CONTINUES, shorten

logger = logging.getLogger(__name__)

RESUME_MODES = ("auto", "never")
ON_FULL_DISK = ("stop", "continue")
CONTENTS = "data_contents.json"  # identifies the data that the run began with


class SettingsChangedError(ValueError):
    """The folder holds a run with different settings; names every difference."""


class FolderInUseError(RuntimeError):
    """Another process is running in the folder."""


class RunFolder:
    """The folder that a run writes to. The same command with the same folder continues an unfinished run.

    All processes of a run share the decisions of the first. Parts of the run register here: what every checkpoint holds
    (`keep`), and what is closed or summarised at the end (`at_end`).

    Args:
        output_dir: path of the folder.
        resume: "auto" continues the run in `output_dir`, or starts one if there is none; "never" starts in a new
            folder `output_dir/run_002`, `run_003`, ... and overwrites nothing.
        on_full_disk: "stop" ends the run when a file does not fit on the disk; "continue" leaves it out.

    Attributes:
        path: the folder of this run.
        continued: whether it already held this run.
        notes: warnings that the summary at the end repeats.
        checkpoints: the handler that writes checkpoints, if there is one.
        tracker: the handler that tracks the run, if there is one.
        facts: numbers of the run that the tracker gets besides the options.
        kept: parts of every checkpoint, by name.
        kept_if_there: further parts, which checkpoints of an older version lack.
        ending: parts registered with `at_end`.
        stopped: why the training stopped early, and how to continue; shown last.

    Raises:
        ValueError: unknown `resume` or `on_full_disk`.
        OSError: the folder is not writable.
        FolderInUseError: another process is running in the folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(Path(place) / "out")
        ...     folder.continued, folder.path.name
        ...     folder.release()
        (False, 'out')
    """

    def __init__(
        self,
        output_dir: str | Path,
        resume: str = "auto",
        on_full_disk: str = "stop",
    ) -> None:
        if on_full_disk not in ON_FULL_DISK:
            raise ValueError(f"on_full_disk must be one of {', '.join(ON_FULL_DISK)}, got {on_full_disk!r}.")
        if resume not in RESUME_MODES:
            raise ValueError(f"resume must be one of {', '.join(RESUME_MODES)}, got {resume!r}.")
        wanted = Path(output_dir).absolute()
        if resume == "never" and (wanted / "run.json").exists():
            numbers = (number for number in range(2, 10**6) if not (wanted / f"run_{number:03d}").exists())
            wanted = wanted / f"run_{next(numbers):03d}"
        self.path = Path(str(idist.broadcast(str(wanted), src=0)) if idist.get_world_size() > 1 else wanted)
        self.resume = resume
        self.notes: list[str] = []
        self.on_full_disk = on_full_disk
        self.checkpoints: Any = None
        self.tracker: Any = None
        self.facts: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}
        self.kept_if_there: dict[str, Any] = {}
        self.ending: list[Any] = []
        self.stopped = ""
        self._incomplete: set[str] = set()  # what `unless_full` has reported
        self.state: dict[str, Any] = self._read()
        self.continued = bool(self.state)
        if idist.get_rank() == 0:
            self._check_writable()
            self._lock = self._take_lock()
            remove_partials(self.path)

    def _take_lock(self) -> FileLock:
        """Keep a second run out of the folder as long as this process lives."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise FolderInUseError(
                f"another process, or this one, is running in {self.path}; wait, or use another --output_dir."
            ) from error
        return lock

    def _check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(
                error.errno,
                f"the output folder {self.path} cannot be written ({error.strerror}); set --output_dir, and "
                "--cache_dir if the bundle's folder is read-only.",
            ) from error

    def _read(self) -> dict[str, Any]:
        path = self.path / "run.json"
        if not path.exists():
            return {}
        try:
            state: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); use --resume never, or another --output_dir.") from error
        return state

    @property
    def finished(self) -> bool:
        """Whether the run in this folder has reached its last step."""
        return self.state.get("status") == "finished"

    @property
    def name(self) -> str:
        """Name of the run, unique across folders."""
        return str(self.state["name"])

    @property
    def how_to_continue(self) -> str:
        """How a stopped run is continued, to stand within or before a sentence."""
        if self.resume == "auto":
            return CONTINUES
        return f"the same command with --resume auto --output_dir {shlex.quote(str(self.path))} continues"

    def keep(self, name: str, part: Any, since_version: bool = False) -> None:
        """Save a part in every checkpoint.

        Args:
            name: key in the checkpoint.
            part: object with `state_dict` and `load_state_dict`.
            since_version: older checkpoints may lack it; it then starts from its initial state.
        """
        (self.kept_if_there if since_version else self.kept)[name] = part

    def at_end(self, part: Any) -> None:
        """Call `part.close()` however the training ends, and show its string `summary`, as far as it has them."""
        self.ending.append(part)

    def begin(self, data_digest: str, name: str = "run", contents: Mapping[str, str] | None = None) -> RunFolder:
        """Start the run, or check that the one in the folder was started with the same settings and data.

        Args:
            data_digest: digest of the content of the prepared volumes.
            name: prefix of the run's unique name.
            contents: content of every volume by name, see `content_changes`; stored in the folder.

        Raises:
            OtherVersionError: the run was started with another version of the networks.
            SettingsChangedError: settings that change the result, or the data, differ from those of the run.
        """
        config = current_config()
        changed = self._changes(config, data_digest, contents) if self.state else []
        if self.state and not self.finished and not CheckpointStore(self.path / "checkpoints").paths():
            logger.info("%s has no checkpoint yet: the run begins at step 0, with the settings given now.", self.path)
            if changed:  # another run, in MLflow too; what the earlier one left is not its own
                self.state, self.continued = {}, False
        if self.state:
            if (found := self.state.get("contract_version", 1)) != CONTRACT_VERSION:
                self.release()
                raise OtherVersionError(f"the run in {self.path} (use --resume never or another --output_dir)", found)
            if changed:
                self.release()
                raise SettingsChangedError(
                    f"{self.path} holds a run with different settings:\n  " + "\n  ".join(changed) + "\n"
                    "Restore them to continue it, or use --resume never (new folder) or another --output_dir."
                )
            return self
        started = datetime.now().strftime("%Y%m%d-%H%M%S")
        state = {"name": f"{name}-{started}-{uuid.uuid4().hex[:6]}", "status": "running", "version": __version__}
        self.state = state | {"contract_version": CONTRACT_VERSION, "data_digest": data_digest, "config": config}
        self._keep_contents(contents)
        if idist.get_rank() == 0:
            self._write()
        return self

    def _changes(self, config: Mapping[str, Any], data_digest: str, contents: Mapping[str, str] | None) -> list[str]:
        """Settings that change the result, and data, that are not those of the run in the folder."""
        changed = differences(self.state["config"], config, free_keys())
        if self.state["data_digest"] != data_digest:
            changed += [f"data: {line}" for line in content_changes(self._contents(), contents or {})]
        return changed

    def _keep_contents(self, contents: Mapping[str, str] | None) -> None:
        if contents and idist.get_rank() == 0:
            write_text_safely(self.path / CONTENTS, json.dumps(contents, indent=0), private=True)

    def _contents(self) -> dict[str, str]:
        try:
            contents: dict[str, str] = json.loads((self.path / CONTENTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # such as a run of an earlier version
            return {}
        return contents

    def update(self, **values: Any) -> None:
        """Set values of `run.json`, e.g. `status`."""
        self.state |= values
        if idist.get_rank() == 0:
            with self.unless_full("the state in run.json"):
                self._write()

    def _write(self) -> None:
        text = json.dumps(self.state, indent=1, default=str)
        write_text_safely(self.path / "run.json", text, private=True)

    def release(self) -> None:
        """Release the folder for another run."""
        if idist.get_rank() == 0:
            self._lock.release()

    def with_advice(self, error: FullDiskError) -> FullDiskError:
        """The error that ends the run, with advice."""
        newest = CheckpointStore(self.path / "checkpoints").newest_named()
        return FullDiskError(error.errno, f"{error.strerror}. {newest} Make room; {self.how_to_continue}.")

    @contextmanager
    def unless_full(self, what: str) -> Iterator[None]:
        """Guard writing that the training does not depend on; a full disk stops it or not, by `on_full_disk`.

        Args:
            what: what would be missing; reported once, and again in the summary at the end.

        Raises:
            FullDiskError: the disk is full; names the file, the missing space and the newest checkpoint.
        """
        try:
            yield
        except FullDiskError as error:
            if self.on_full_disk == "stop":
                raise self.with_advice(error) from error
            if what not in self._incomplete:
                self._incomplete.add(what)
                self.note(f"{error.strerror}. The training continues; {what} may be missing from now on.")

    def note(self, text: str) -> None:
        """Log a warning now, and again in the summary at the end."""
        logger.warning(text)
        self.notes.append(text)


def content_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Changes in data as lines that name volumes; the same content under another name is not a change.

    Args:
        before: content of every volume by name.
        now: the same, later or elsewhere.

    Example:
        >>> content_changes({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "5", "d": "4", "moved": "3"})
        ['changed: b', 'new: d']
    """
    if not (before and now):
        return ["not the volumes that this run started with"]
    contents = set(before.values()), set(now.values())
    gone = {name for name, content in before.items() if content not in contents[1]}
    new = {name for name, content in now.items() if content not in contents[0]}
    kinds = {"changed": gone & new, "missing": gone - new, "new": new - gone}
    lines = [f"{kind}: {shorten(sorted(names))}" for kind, names in kinds.items() if names]
    return lines or ["the same volumes, but other copies of them"]
