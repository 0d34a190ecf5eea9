"""Run a training from its folder's state to its end; say first what will be done, and at the end what was.

Also how long a fine-tuning is.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from mim_components.data.load.loader import explain_worker_error, kill_workers
from mim_components.data.load.sampler import StepSampler
from mim_components.data.prepare.quarantine import QUARANTINE
from mim_components.data.volumes import PreparedDataset
from mim_components.handlers.checkpoint import CheckpointHandler
from mim_components.handlers.tracking import RunTracker
from mim_components.run.folder import RunFolder
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import shorten

logger = logging.getLogger(__name__)

# files of a run's folder that MLflow gets at the end
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


def log_plan(
    folder: RunFolder,
    prepared: PreparedDataset,
    sampler: StepSampler,
    network: nn.Module,
    device: torch.device,
    level_sizes: Sequence[Sequence[int]],
) -> None:
    """Log what was found and what will be done; keep remarks and excluded volumes in the run's folder."""
    if idist.get_rank() != 0:
        return
    padded = prepared.count_smaller_than(level_sizes[0])
    logger.info("%s", prepared.summary())
    size = size_of_run(folder, sampler, network, device)
    logger.info("%s; %d steps, %.1f passes over the volumes", size, sampler.num_steps, sampler.epochs)
    if padded:
        size = "x".join(str(side) for side in level_sizes[0])
        folder.note(
            f"{padded} of {len(prepared)} volumes are smaller than level 1 ({size} voxels) and are padded with air."
        )
    keep_remarks(folder, prepared)


def size_of_run(folder: RunFolder, sampler: StepSampler, network: nn.Module, device: torch.device) -> str:
    """Where a run works, what makes up an optimizer step, and how large the network is, in one line."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    return (
        f"{folder.path}, device {device}{name}: global batch {sampler.global_batch_size} = {sampler.batch_size} per "
        f"device x {sampler.num_devices} devices x {sampler.accumulation} accumulated; {parameters:.1f} M parameters"
    )


def keep_remarks(folder: RunFolder, prepared: Any) -> None:
    """Keep remarks on the data (`prepared.notes`) in the run's folder, and repeat at the end what was left out.

    The preparation has written the file that lists bad volumes.
    """
    if prepared.notes:  # the preparation has logged every one
        lines = "".join(f"{note}\n" for note in prepared.notes)
        write_text_safely(folder.path / "data_notes.txt", lines)
        folder.notes.append(f"{len(prepared.notes)} remarks on the data, see data_notes.txt: {shorten(prepared.notes)}")
    if prepared.bad:
        folder.notes.append(f"{len(prepared.bad)} volumes left out, see {QUARANTINE}: {shorten(prepared.bad)}")


def train(
    trainer: SupervisedTrainer,
    checkpoints: CheckpointHandler,
    tracker: RunTracker,
    folder: RunFolder,
    closing: Sequence[Any] = (),
    results: Sequence[Any] = (),
) -> None:
    """Continue from the folder's newest checkpoint, or start; only say so when the run is finished.

    Args:
        trainer: with all its handlers.
        checkpoints: of the run.
        tracker: closed as FINISHED, FAILED, or KILLED when the run was told to stop.
        folder: of the run.
        closing: handlers whose `close()` is called however the training ends.
        results: what else has something to say at the end, as the text `summary`.
    """
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
    except BaseException as error:
        explained = explain_worker_error(error, checkpoints.loader.awaited_names())
        if explained is not None:
            kill_workers()
        stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
        tracker.close("KILLED" if stopped else "FAILED")
        try:
            folder.update(status="interrupted" if stopped else "failed")
        except OSError as second:  # a full disk, say; the first error matters more
            logger.error("%s", second)
        if explained is not None:
            raise explained from error
        raise
    finally:
        for handler in closing:
            handler.close()
        folder.release()
    folder.update(status="finished")
    if idist.get_rank() == 0:
        for name in ARTIFACTS:
            if (folder.path / name).exists():
                tracker.log_artifact(folder.path / name)
        tracker.close("FINISHED")
        logger.info("%s", summary(folder, tracker, [each.summary for each in results if each.summary]))


def summary(folder: RunFolder, tracker: RunTracker, results: Sequence[str] = ()) -> str:
    """What a run achieved: losses at its first and last step, warnings, files, and how to look at them."""
    path = folder.path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not rows:
        return _outputs(folder)
    few = max(len(rows) // 20, 1)  # single steps are noisy
    what = "of the first and the last logged step" if few == 1 else f"mean of the first and the last {few} logged steps"
    lines = [f"Finished at step {rows[-1]['step']}. Losses, {what}:"]
    names = ["loss", *(name for name in rows[-1] if "_level" in name)]
    for name in names:
        first, last = (_mean(row.get(name) for row in part) for part in (rows[:few], rows[-few:]))
        lines.append(f"  {name:<24} {first:.4f} -> {last:.4f}")
    lines += [*results, *(f"Warning: {note}" for note in folder.notes)]
    return "\n".join([*lines, _outputs(folder), f"Look at all runs: mlflow ui --backend-store-uri {tracker.place}"])


def _mean(values: Iterable[float | None]) -> float:
    """Of the values that are there: a skipped step has none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else math.nan


def _outputs(folder: RunFolder) -> str:
    """What the run's folder holds, of the products that a training can have."""
    found = [(title, folder.path / name) for title, name in PRODUCTS.items() if (folder.path / name).exists()]
    return "\n".join(f"{title + ':':<9} {path}" for title, path in found)


def steps_of(epochs: float | None, num_items: int, global_batch_size: int, default: int) -> int:
    """Optimizer steps of so many passes over the training scans, at least 1; without a number of passes the default.

    Args:
        epochs: passes over the scans; None = not given.
        num_items: training scans.
        global_batch_size: scans per optimizer step.
        default: optimizer steps, whatever the number of scans.

    Raises:
        ValueError: a value is not positive.

    Example:
        >>> steps_of(500, num_items=24, global_batch_size=4, default=25_000)
        3000
        >>> steps_of(None, num_items=24, global_batch_size=4, default=25_000)
        25000
    """
    if epochs is None:
        return default
    if not (epochs > 0 and num_items > 0 and global_batch_size > 0):
        raise ValueError(
            f"epochs, training scans and global_batch_size must be positive, got {epochs}, {num_items}, "
            f"{global_batch_size}."
        )
    return max(math.ceil(epochs * num_items / global_batch_size - 1e-9), 1)


def length_of(sampler: StepSampler, num_samples: int = 1) -> str:
    """How long a training is, in steps and in epochs.

    Args:
        sampler: of the training.
        num_samples: crops of every scan.

    Example:
        >>> length_of(StepSampler(24, num_steps=25_000, global_batch_size=1), num_samples=4)
        '25,000 steps of 1 scan x 4 crops = 1,042 epochs of 24 scans'
    """
    scans, crops = _count(sampler.global_batch_size, "scan"), f" x {num_samples} crops" if num_samples > 1 else ""
    epochs = f"{sampler.epochs:,.0f}" if sampler.epochs >= 10 else f"{sampler.epochs:.3g}"
    steps, items = _count(sampler.num_steps, "step"), _count(sampler.num_items, "scan")
    return f"{steps} of {scans}{crops} = {epochs} epochs of {items}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def log_finetune_plan(
    folder: RunFolder,
    prepared: Any,
    sampler: StepSampler,
    network: nn.Module,
    device: torch.device,
    validation_interval: int,
    num_samples: int = 1,
) -> None:
    """Log what was found and what will be done; keep remarks and excluded scans in the run's folder.

    Args:
        folder: of the run.
        prepared: the training and validation cases.
        sampler: of the training.
        network: that is trained.
        device: it runs on.
        validation_interval: optimizer steps between two validations.
        num_samples: crops of every scan.
    """
    if idist.get_rank() != 0:
        return
    size, length = size_of_run(folder, sampler, network, device), length_of(sampler, num_samples)
    logger.info("%s; %s; validation every %s", size, length, _count(validation_interval, "step"))
    keep_remarks(folder, prepared)
