"""Disks, memory and files that run out, are read-only, or change under a run."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim_components.run.checkpoints import CheckpointStore
from tests.faults.runs import (
    PRETRAIN,
    SEGMENTATION,
    Bundle,
    Server,
    assert_same,
    finish,
    hold,
    losses,
    mounts_possible,
    start,
    weights_digest,
)

pytestmark = pytest.mark.slow

Data = Callable[[Bundle], dict[str, str]]
Reference = Callable[..., Path]
SAME = "after that the same command ends with losses and weights equal to an undisturbed run, bit for bit"


class Mounts:
    """Runs and commands in a mount namespace of their own, and the way into it."""

    def __init__(self) -> None:
        self.server = Server(["unshare", "-rm"])

    def shell(self, command: str) -> None:
        """Run a command inside."""
        inside = ["nsenter", "-U", "-m", "--preserve-credentials", "-t", str(self.server.pid)]
        subprocess.run([*inside, "sh", "-ec", command], check=True, capture_output=True)

    def tmpfs(self, folder: Path, size: int) -> Path:
        """Mount a file system of a given size in bytes; returns its path as seen from outside."""
        folder.mkdir(exist_ok=True)
        self.shell(f"mount -t tmpfs -o size={size} none {shlex.quote(str(folder))}")
        return Path(f"/proc/{self.server.pid}/root{folder}")


@pytest.fixture(scope="module")
def mounts() -> Iterator[Mounts]:
    if not mounts_possible():
        pytest.skip("needs mounts: root, or user namespaces (unshare -rm)")
    inside = Mounts()
    yield inside
    inside.server.close()


@pytest.fixture(scope="module")
def checkpoint_size(reference: Reference) -> int:
    """Bytes of a checkpoint of these runs."""
    return CheckpointStore(reference(PRETRAIN) / "checkpoints").paths()[-1].stat().st_size


def fill(folder: Path, left: int) -> Path:
    """Fill a disk until `left` bytes are free; returns the file."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(b"\0" * (free - left))
    return folder / "filler"


def whole_checkpoints(output: Path) -> list[int]:
    """Steps of the checkpoints, which must all be intact, without partial files beside them."""
    store = CheckpointStore(output / "checkpoints")
    state = store.newest()
    assert state is None or state["step"] == int(store.paths()[-1].stem.removeprefix("step_"))
    assert not list((output / "checkpoints").glob(".*"))
    return [int(path.stem.removeprefix("step_")) for path in store.paths()]


@pytest.mark.fault("A13", fault="/dev/shm full", injection="/dev/shm is a tmpfs of 1 MB, 2 workers",
                   expected="stops before the first step, exit 1, the message names the limit; " + SAME)  # fmt: skip
def test_shared_memory(mounts: Mounts, scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    mounts.shell("mount -t tmpfs -o size=1m none /dev/shm")
    run = start(PRETRAIN, tmp_path / "run", **scans, num_workers=2, forked_by=mounts.server)
    code = run.wait()
    mounts.shell("umount /dev/shm")
    assert code == 1
    assert "shared memory (/dev/shm) is too small for the batches of num_workers=2" in run.error
    assert "1.0 MB free. Lower --num_workers" in run.error
    assert losses(run.output) == []
    finish(start(PRETRAIN, run.output, **scans, num_workers=2))
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A14", fault="too many open files", injection="ulimit -n 100, 2 workers",
                   expected="stops before the first step, exit 1, the message names the limit; " + SAME)  # fmt: skip
def test_open_files(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -n 100 && exec "$@"', "sh"]
    run = start(PRETRAIN, tmp_path / "run", **scans, num_workers=2, prefix=limited)
    assert run.wait() == 1
    assert "too few open files are allowed (ulimit -n): 100, about " in run.error and "lower --num_workers" in run.error
    assert losses(run.output) == []
    finish(start(PRETRAIN, run.output, **scans, num_workers=2))
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A15", fault="disk full at the 2nd checkpoint",
                   injection="the output on a tmpfs that another file fills in mid-run",
                   expected="exit 1, \"disk full\" with path and missing bytes, the old checkpoint is whole; "
                   + SAME)  # fmt: skip
def test_disk_full(
    mounts: Mounts, scans: dict[str, str], reference: Reference, checkpoint_size: int, tmp_path: Path
) -> None:
    output = mounts.tmpfs(tmp_path / "run", 5 * checkpoint_size + 2**20)
    held = tmp_path / "held"
    options = {**scans, "forked_by": mounts.server}
    run = start(PRETRAIN, tmp_path / "run", **options, **{"train::progress": hold(3, held)})
    run.wait_held(held)
    filler = fill(output, checkpoint_size // 2)
    held.unlink()
    assert run.wait() == 1
    assert f"cannot write {run.output}/checkpoints/step_00000004.pt, which needs " in run.error
    assert "disk full: " in run.error and " are missing. " in run.error
    assert f"Newest checkpoint: {run.output}/checkpoints/step_00000002.pt. Make room; the same command" in run.error
    assert whole_checkpoints(output) == [2]
    filler.unlink()
    finish(start(PRETRAIN, run.output, **options))
    assert_same(output, reference(PRETRAIN))


@pytest.mark.fault("A16", fault="disk too small for the checkpoints",
                   injection="the output on a tmpfs with room for one",
                   expected="refused before the first step, exit 1, needed, free and missing bytes named; "
                   + SAME)  # fmt: skip
def test_small_disk(
    mounts: Mounts, scans: dict[str, str], reference: Reference, checkpoint_size: int, tmp_path: Path
) -> None:
    output = mounts.tmpfs(tmp_path / "run", checkpoint_size + 2**16)
    options = {**scans, "forked_by": mounts.server}
    run = start(PRETRAIN, tmp_path / "run", **options)
    assert run.wait() == 1
    assert f"{run.output}: no room for 3 checkpoints of " in run.error
    assert " needed, " in run.error and " missing. Make room, or set --output_dir" in run.error
    assert losses(output) == [] and whole_checkpoints(output) == []
    mounts.shell(f"mount -o remount,size={6 * checkpoint_size} {shlex.quote(str(run.output))}")
    finish(start(PRETRAIN, run.output, **options))
    assert_same(output, reference(PRETRAIN))


@pytest.mark.parametrize(
    "bundle",
    [
        pytest.param(PRETRAIN, marks=pytest.mark.fault(
            "A17", fault="limit of file sizes", injection="prlimit --fsize below a checkpoint, in mid-run",
            expected="exit 1, the limit and the path named, the old checkpoint is whole; " + SAME)),
        pytest.param(SEGMENTATION, marks=pytest.mark.fault(
            "A17s", fault="limit of file sizes, segmentation",
            injection="prlimit --fsize below a checkpoint, in mid-run",
            expected="exit 1, the limit and the path named, old checkpoint and best model are whole; " + SAME)),
    ],
    ids=["pretrain", "segmentation"],
)  # fmt: skip
def test_file_size_limit(bundle: Bundle, data_of: Data, reference: Reference, tmp_path: Path) -> None:
    held = tmp_path / "held"
    run = start(bundle, tmp_path / "run", **data_of(bundle), **{"train::progress": hold(3, held)})
    run.wait_held(held)
    size = CheckpointStore(run.output / "checkpoints").paths()[-1].stat().st_size
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    held.unlink()
    assert run.wait() == 1
    assert f"cannot write {run.output}/" in run.error and "files are limited to" in run.error
    assert "(ulimit -f)" in run.error
    assert whole_checkpoints(run.output) == [2]
    finish(start(bundle, run.output, **data_of(bundle)))
    assert_same(run.output, reference(bundle))


@pytest.mark.fault("A10", fault="no room for a checkpoint, folder::on_full_disk=continue",
                   injection="prlimit --fsize below a checkpoint, for a while",
                   expected="exit 0, a warning names the checkpoint that is missing; losses and weights equal to an "
                   "undisturbed run, bit for bit")  # fmt: skip
def test_full_disk_continue(scans: dict[str, str], reference: Reference, checkpoint_size: int, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    holds = {"train::progress": hold(3, first), "train::pictures": hold(5, second)}
    run = start(PRETRAIN, tmp_path / "run", **scans, **{"folder::on_full_disk": "continue"}, **holds)
    run.wait_held(first)
    unlimited = resource.prlimit(run.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (checkpoint_size // 2, unlimited[1]))
    first.unlink()
    run.wait_held(second)
    assert whole_checkpoints(run.output) == [2]
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, unlimited)
    second.unlink()
    finish(run)
    assert "step_00000004.pt, which needs " in run.text
    assert "Warning: " in run.text and "The training continues without this checkpoint" in run.text
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A18", fault="output read-only", injection="mount -o remount,ro before the start",
                   expected="refused before the first step, exit 1, folder named; " + SAME)  # fmt: skip
def test_read_only(mounts: Mounts, scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    output = mounts.tmpfs(tmp_path / "run", 2**26)
    mounts.shell(f"mount -o remount,ro {shlex.quote(str(tmp_path / 'run'))}")
    options = {**scans, "forked_by": mounts.server}
    run = start(PRETRAIN, tmp_path / "run", **options)
    assert run.wait() == 1
    assert f"the output folder {run.output} cannot be written (Read-only file system); set --output_dir" in run.error
    assert list(output.iterdir()) == []
    mounts.shell(f"mount -o remount,rw {shlex.quote(str(tmp_path / 'run'))}")
    finish(start(PRETRAIN, run.output, **options))
    assert_same(output, reference(PRETRAIN))


@pytest.mark.fault("A23", fault="cache disk full", injection="the cache on a tmpfs of 16 kB",
                   expected="differs on purpose: pre-training reads its scans from the cache, so it stops before the "
                   "first step, exit 1, folder and missing bytes named; " + SAME)  # fmt: skip
def test_cache_disk_full(mounts: Mounts, scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    mounts.tmpfs(tmp_path / "cache", 2**14)
    options = {**scans, "cache_dir": str(tmp_path / "cache"), "forked_by": mounts.server}
    run = start(PRETRAIN, tmp_path / "run", **options)
    assert run.wait() == 1
    assert f"{tmp_path / 'cache'}: the cache needs " in run.error and "Set another --cache_dir" in run.error
    assert losses(run.output) == []
    mounts.shell(f"umount {shlex.quote(str(tmp_path / 'cache'))}")
    finish(start(PRETRAIN, run.output, **options))
    assert_same(run.output, reference(PRETRAIN))


@pytest.mark.fault("A23s", fault="cache disk full, segmentation", injection="the cache on a tmpfs of 16 kB",
                   expected="exit 0 without cache, a warning names the file; losses and weights equal to an "
                   "undisturbed run, bit for bit")  # fmt: skip
def test_cache_disk_full_in_fine_tuning(
    mounts: Mounts, labelled: dict[str, str], reference: Reference, tmp_path: Path
) -> None:
    mounts.tmpfs(tmp_path / "cache", 2**14)
    options = {**labelled, "cache_dir": str(tmp_path / "cache"), "forked_by": mounts.server}
    run = finish(start(SEGMENTATION, tmp_path / "run", **options))
    assert f"cannot write {tmp_path / 'cache'}" in run.text and "continues without writing to the cache" in run.text
    assert_same(run.output, reference(SEGMENTATION))


@pytest.mark.parametrize(
    ("bundle", "pattern"),
    [
        pytest.param(PRETRAIN, "**/*.npy", marks=pytest.mark.fault(
            "A24", fault="cache file truncated", injection="half of every cache file is cut off",
            expected="regenerated; losses and weights equal to an undisturbed run, bit for bit")),
        pytest.param(SEGMENTATION, "**/*.pt", marks=pytest.mark.fault(
            "A24s", fault="cache file truncated, segmentation", injection="half of every cache file is cut off",
            expected="regenerated, the file named; losses and weights equal to an undisturbed run, bit for bit")),
    ],
    ids=["pretrain", "segmentation"],
)  # fmt: skip
def test_cache_file_truncated(
    bundle: Bundle, pattern: str, data_of: Data, reference: Reference, tmp_path: Path
) -> None:
    reference(bundle)  # fills the cache
    cache = Path(shutil.copytree(data_of(bundle)["cache_dir"], tmp_path / "cache"))
    sizes = {path: path.stat().st_size for path in cache.glob(pattern)}
    assert len(sizes) >= 3
    for path, size in sizes.items():
        os.truncate(path, size // 2)
    run = finish(start(bundle, tmp_path / "run", **{**data_of(bundle), "cache_dir": str(cache)}))
    whole = [path for path, size in sizes.items() if path.stat().st_size == size]  # others are not of this run
    assert len(whole) >= 3
    assert bundle is PRETRAIN or all(f"{path}: not a readable" in run.text for path in whole)
    assert_same(run.output, reference(bundle))


@pytest.mark.fault("A25", fault="source file changed after caching", injection="another scan is written over it",
                   expected="regenerated: weights equal to a run with a new cache; the run that was begun with the old "
                   "scan is refused, exit 1")  # fmt: skip
def test_source_changed(scans: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scans["dataset_dir"], tmp_path / "scans"))
    options = {**scans, "dataset_dir": str(folder), "cache_dir": str(tmp_path / "cache"), "max_steps": 2}
    before = finish(start(PRETRAIN, tmp_path / "before", **options)).output
    scan = folder / "scan_0.nii.gz"
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[::-1], image.affine), scan)
    after = finish(start(PRETRAIN, tmp_path / "after", **options)).output
    fresh = finish(start(PRETRAIN, tmp_path / "fresh", **{**options, "cache_dir": str(tmp_path / "new")})).output
    assert_same(after, fresh)
    assert weights_digest(after) != weights_digest(before)
    again = start(PRETRAIN, before, **options)
    assert again.wait() == 1
    assert f"data: changed: {scan}" in again.error


@pytest.mark.fault("A26", fault="source files disappear in mid-run", injection="the folder of scans is removed",
                   expected="exit 0; losses and weights equal to an undisturbed run, bit for bit")  # fmt: skip
def test_source_disappears(scans: dict[str, str], reference: Reference, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scans["dataset_dir"], tmp_path / "scans"))
    options = {**scans, "dataset_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    run = start(PRETRAIN, tmp_path / "run", **options, **{"train::progress": hold(2, tmp_path / "held")})
    run.wait_held(tmp_path / "held")
    shutil.rmtree(folder)
    (tmp_path / "held").unlink()
    finish(run)
    assert_same(run.output, reference(PRETRAIN))
