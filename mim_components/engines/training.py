"""Run a training from the state of its folder to the end, with a summary; its number of steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

import ignite.distributed as idist
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from mim_components.data.load.loader import explain_worker_error, kill_workers
from mim_components.data.prepare.cases import PreparedCases
from mim_components.data.prepare.quarantine import QUARANTINE
from mim_components.handlers.tracking import RunTracker
from mim_components.run.folder import RunFolder
from mim_components.utils.files import read_rows

logger = logging.getLogger(__name__)

# files of the run folder that MLflow gets at the end
ARTIFACTS = (
    "metrics.jsonl",
    "validation.jsonl",
    "probe.jsonl",
    "data_notes.txt",
    QUARANTINE,
    "datalist.json",
    "data_report.md",
)
PRODUCTS = {
    "Encoder": "models/encoder.safetensors",
    "Best": "models/encoder_best.safetensors",
    "Network": "models/model.pt",
    "Pictures": "pictures",
    "Scores": "validation.jsonl",
    "Probe": "probe.jsonl",
    "Numbers": "metrics.jsonl",
}


def train(trainer: SupervisedTrainer, folder: RunFolder) -> None:
    """Continue from the folder's newest checkpoint, or start; a finished run is only reported.

    However it ends, all parts registered with the folder are closed, and the run is tracked as FINISHED, FAILED,
    or KILLED if it was told to stop.

    Args:
        trainer: trainer with all handlers, including a `CheckpointHandler` and a `RunTracker`.
        folder: run folder, with which handlers and step have registered.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from mim_components.data import KeyedDataset, StepLoader
        >>> from mim_components.handlers import CheckpointHandler
        >>> network = torch.nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(network.parameters())
        >>> schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        >>> loader = StepLoader(KeyedDataset([1.0, 2.0], float), num_steps=3, global_batch_size=2)
        >>> step = lambda engine, batches: print("step", engine.state.iteration, [len(batch) for batch in batches])
        >>> trainer = SupervisedTrainer("cpu", 1, loader, network, optimizer, torch.nn.MSELoss(), iteration_update=step)
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place).begin(data_digest="")
        ...     folder.tracker = SimpleNamespace(close=print, place="mlruns.db")
        ...     CheckpointHandler(folder, network, optimizer, schedule, loader).attach(trainer)
        ...     train(trainer, folder)
        step 1 [1, 1]
        step 2 [1, 1]
        step 3 [1, 1]
        FINISHED
    """
    checkpoints, tracker = folder.checkpoints, folder.tracker
    if folder.finished:
        logger.info("The run in %s is finished; use --resume never for a new one.\n%s", folder.path, _outputs(folder))
        tracker.send_rest(trainer)
        folder.release()
        return
    step = checkpoints.restore(trainer)
    folder.update(status="running")
    try:
        if step >= (trainer.state.epoch_length or 0):  # interrupted between the last step and the products
            trainer.fire_event(Events.STARTED)
            trainer.fire_event(Events.COMPLETED)
        else:
            trainer.run()
        _close_parts(folder)
        _hand_over(folder)
    except BaseException as error:
        explained = explain_worker_error(error, checkpoints.loader.awaited_names(), folder.how_to_continue)
        if explained is not None:
            kill_workers()
        stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
        tracker.close("KILLED" if stopped else "FAILED")
        try:
            folder.update(status="interrupted" if stopped else "failed")
        except OSError as second:  # such as a full disk; the first error matters more
            logger.error("%s", second)
        if explained is not None:
            raise explained from error
        raise
    finally:
        _close_parts(folder)
        folder.release()
        if folder.stopped:  # last, after the progress bar has ended
            logger.warning("%s", folder.stopped)
    if idist.get_rank() == 0:
        logger.info("%s", summary(folder, tracker, trainer.state.iteration, _texts(folder)))


def _close_parts(folder: RunFolder) -> None:
    """Close the registered parts; a second time does nothing."""
    for part in folder.ending:
        if hasattr(part, "close"):
            part.close()


def _hand_over(folder: RunFolder) -> None:
    """Send the run's files and close it in MLflow; then it is finished, and not before: a stop here is made up for."""
    if idist.get_rank() == 0:
        for name in ARTIFACTS:
            if (folder.path / name).exists():
                folder.tracker.log_artifact(folder.path / name)
        folder.tracker.close("FINISHED")
    folder.update(status="finished")


def _texts(folder: RunFolder) -> list[str]:
    """Summaries of the registered parts."""
    return [text for part in folder.ending if (text := getattr(part, "summary", ""))]


def summary(folder: RunFolder, tracker: RunTracker, step: int, results: Sequence[str] = ()) -> str:
    """Summary of a run that ended at `step`: its first and last losses, warnings, files, and how to view them."""
    rows = read_rows(folder.path / "metrics.jsonl")
    if not rows:
        return _outputs(folder)
    few = max(len(rows) // 20, 1)  # single steps are noisy
    what = "of the first and the last logged step" if few == 1 else f"mean of the first and the last {few} logged steps"
    lines = [f"Finished at step {step}. Losses, {what}:"]
    names = ["loss", *(name for name in rows[-1] if "_level" in name)]
    for name in names:
        first, last = (_mean(row.get(name) for row in part) for part in (rows[:few], rows[-few:]))
        lines.append(f"  {name:<24} {first:.4f} -> {last:.4f}")
    lines += [*results, *(f"Warning: {note}" for note in folder.notes)]
    return "\n".join([*lines, _outputs(folder), f"In MLflow: {tracker.page}"])


def _mean(values: Iterable[float | None]) -> float:
    """Mean of the values present: a skipped step has none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else math.nan


def _outputs(folder: RunFolder) -> str:
    """The products of a training that exist in the run folder."""
    found = [(title, folder.path / name) for title, name in PRODUCTS.items() if (folder.path / name).exists()]
    return "\n".join(f"{title + ':':<9} {path}" for title, path in found)


def steps_of(epochs: float | None, prepared: PreparedCases, global_batch_size: int, default: int) -> int:
    """Number of optimizer steps for `epochs` passes over the training scans, at least 1; the default if None.

    Args:
        epochs: passes over the scans; None = not given.
        prepared: the training scans.
        global_batch_size: scans per optimizer step.
        default: number of optimizer steps without `epochs`.

    Raises:
        ValueError: a value is not positive.

    Example:
        >>> prepared = PreparedCases(training=[{"name": f"{number}"} for number in range(24)], validation=[])
        >>> steps_of(500, prepared, global_batch_size=4, default=25_000)
        3000
        >>> steps_of(None, prepared, global_batch_size=4, default=25_000)
        25000
    """
    if epochs is None:
        return default
    num_items = len(prepared.training)
    if not (epochs > 0 and num_items > 0 and global_batch_size > 0):
        raise ValueError(
            f"epochs, training scans and global_batch_size must be positive, got {epochs}, {num_items}, "
            f"{global_batch_size}."
        )
    return max(math.ceil(epochs * num_items / global_batch_size - 1e-9), 1)
