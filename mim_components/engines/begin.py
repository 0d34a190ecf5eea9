"""Before the first step of a training: claim its folder, log the plan, and keep remarks on the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from mim_components.data.load.loader import StepLoader
from mim_components.data.load.sampler import StepSampler
from mim_components.data.prepare.cases import PreparedCases
from mim_components.data.prepare.label_maps import summary_of
from mim_components.data.prepare.quarantine import PASSED_OVER, QUARANTINE
from mim_components.data.read.headers import resampled_shapes
from mim_components.data.volumes import PreparedDataset
from mim_components.labels import LabelSet
from mim_components.run.folder import RunFolder
from mim_components.run.start_checks import check_validation_start
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import counted, shorten
from mim_components.weights.contract import write_training_volumes

logger = logging.getLogger(__name__)


def begin_pretraining(
    folder: RunFolder,
    prepared: PreparedDataset,
    loader: StepLoader,
    network: nn.Module,
    device: torch.device,
    level_sizes: Sequence[Sequence[int]],
    name: str = "mim_pretrain",
) -> None:
    """Start the run of the folder, or check that the one in it has the same settings and data; log the plan.

    Args:
        folder: run folder.
        prepared: volumes to train on.
        loader: loader of the training.
        network: network to train.
        device: device of the network.
        level_sizes: native sizes of the levels, voxels.
        name: prefix of the run's unique name.

    Raises:
        SettingsChangedError: settings that change the result, or the data, differ from those of the run.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.data import PreparedVolume
        >>> shape, spacing, affine = (64, 64, 20), (1.0, 1.0, 5.0), torch.eye(4).numpy()
        >>> volume = PreparedVolume("ct", "ct.nii.gz", Path("ct.npy"), shape, spacing, affine, "", 0)
        >>> loader = StepLoader([volume], num_steps=10, global_batch_size=4, batch_size=2)
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place)
        ...     level_sizes, device = [(64, 64, 32)], torch.device("cpu")
        ...     begin_pretraining(folder, PreparedDataset([volume]), loader, nn.Linear(1, 1), device, level_sizes)
        >>> folder.facts["accumulation"], folder.facts["num_volumes"], folder.notes
        (2, 1, ['1 of 1 volumes are smaller than level 1 (64x64x32 voxels) and are padded with air.'])
    """
    folder.begin(prepared.digest, name, prepared.contents)
    folder.facts |= facts_of(loader.sampler, prepared)
    folder.facts |= {"num_volumes": len(prepared), "excluded_volumes": len(prepared.bad)}
    folder.facts |= {"passed_over": len(prepared.passed)}
    log_plan(folder, prepared, loader.sampler, network, device, level_sizes)


def begin_fine_tuning(
    folder: RunFolder,
    prepared: PreparedCases,
    loader: StepLoader,
    network: nn.Module,
    device: torch.device,
    name: str,
    validation_interval: int,
    sample_shapes: Sequence[Sequence[int]],
    num_samples: int = 1,
    labels: LabelSet | None = None,
    spacing: Sequence[float] = (),
) -> None:
    """`begin_pretraining` for a fine-tuning; also checks that its scans fit into shared memory together.

    `models/training_volumes.txt` gets the content of the training scans, by which an evaluation knows them again.

    Args:
        folder: run folder.
        prepared: training and validation cases.
        loader: loader of the training.
        network: network to train.
        device: device of the network.
        name: prefix of the run's unique name.
        validation_interval: optimizer steps between two validations.
        sample_shapes: shapes of the arrays of a training sample; without `labels` also those of a validation scan.
        num_samples: crops per scan.
        labels: labels of a segmentation, which validates on whole scans; else None.
        spacing: voxel size that those are resampled to, mm.

    Raises:
        StartError: shared memory or open files do not suffice.
        SettingsChangedError: settings that change the result, or the data, differ from those of the run.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> cases = [{"name": f"{number}", "digest": ""} for number in range(5)]
        >>> prepared = PreparedCases(training=cases[:4], validation=cases[4:])
        >>> loader = StepLoader(prepared.training, num_steps=10, global_batch_size=2)
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place)
        ...     begin_fine_tuning(
        ...         folder, prepared, loader, nn.Linear(1, 1), torch.device("cpu"), "covid", 5, [[1, 1, 32, 32, 32]]
        ...     )
        >>> folder.name.split("-")[0], folder.facts["training_cases"], folder.facts["epochs"]  # 10 steps x 2 of 4 cases
        ('covid', 4, 5.0)
    """
    scans: Sequence[Sequence[int]] = [sample_shapes[0]] * len(prepared.validation)
    if labels is not None:
        channels = sample_shapes[0][1] - 1 + (len(labels.targets) if labels.is_regions else 1)
        scans = resampled_shapes(prepared.validation, spacing, channels)
    check_validation_start(sample_shapes, loader.sampler.batch_size, loader.num_workers, scans)
    folder.begin(prepared.digest, name, prepared.contents)
    if prepared.images and idist.get_rank() == 0:
        contents = [prepared.images[item["name"]] for item in prepared.training]
        write_training_volumes(folder.path / "models", contents)
    folder.facts |= facts_of(loader.sampler, prepared) | {"epochs": loader.sampler.epochs}
    folder.facts |= {"training_cases": len(prepared.training), "validation_cases": len(prepared.validation)}
    folder.facts |= {"excluded_cases": len(prepared.bad)} | ({} if labels is None else {"label_set": labels.name})
    log_finetune_plan(folder, prepared, loader.sampler, network, device, validation_interval, num_samples)


def facts_of(sampler: StepSampler, prepared: Any) -> dict[str, Any]:
    """Facts about a training that a tracker gets besides its options."""
    return {"accumulation": sampler.accumulation, "data_digest": prepared.digest}


def log_plan(
    folder: RunFolder,
    prepared: PreparedDataset,
    sampler: StepSampler,
    network: nn.Module,
    device: torch.device,
    level_sizes: Sequence[Sequence[int]],
) -> None:
    """Log the data and the plan; keep remarks and excluded volumes in the run folder."""
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
    if prepared.passed:
        folder.notes.append(f"{summary_of(prepared.passed)}; see {PASSED_OVER}: {shorten(prepared.passed)}")


def size_of_run(folder: RunFolder, sampler: StepSampler, network: nn.Module, device: torch.device) -> str:
    """Folder and device of a run, the batch of an optimizer step, and the network's size, in one line."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    return (
        f"{folder.path}, device {device}{name}: global batch {sampler.global_batch_size} = {sampler.batch_size} per "
        f"device x {sampler.num_devices} devices x {sampler.accumulation} accumulated; {parameters:.1f} M parameters"
    )


def keep_remarks(folder: RunFolder, prepared: Any) -> None:
    """Keep remarks on the data (`prepared.notes`) in the run folder, and repeat at the end what was left out.

    The file that lists bad volumes is written by the preparation.
    """
    if prepared.notes:  # already logged by the preparation
        lines = "".join(f"{note}\n" for note in prepared.notes)
        write_text_safely(folder.path / "data_notes.txt", lines)
        remarks = counted(len(prepared.notes), "remark")
        folder.notes.append(f"{remarks} on the data, see data_notes.txt: {shorten(prepared.notes)}")
    if prepared.bad:
        volumes = counted(len(prepared.bad), "volume")
        folder.notes.append(f"{volumes} left out, see {QUARANTINE}: {shorten(prepared.bad)}")


def length_of(sampler: StepSampler, num_samples: int = 1) -> str:
    """Length of a training in steps and epochs, as text.

    Args:
        sampler: sampler of the training.
        num_samples: crops per scan.

    Example:
        >>> length_of(StepSampler(24, num_steps=25_000, global_batch_size=1), num_samples=4)
        '25,000 steps of 1 scan x 4 crops = 1,042 epochs of 24 scans'
    """
    scans, crops = counted(sampler.global_batch_size, "scan"), f" x {num_samples} crops" if num_samples > 1 else ""
    epochs = f"{sampler.epochs:,.0f}" if sampler.epochs >= 10 else f"{sampler.epochs:.3g}"
    steps, items = counted(sampler.num_steps, "step"), counted(sampler.num_items, "scan")
    return f"{steps} of {scans}{crops} = {epochs} epochs of {items}"


def log_finetune_plan(
    folder: RunFolder,
    prepared: Any,
    sampler: StepSampler,
    network: nn.Module,
    device: torch.device,
    validation_interval: int,
    num_samples: int = 1,
) -> None:
    """Log the plan; keep remarks and excluded scans in the run folder.

    Args:
        folder: run folder.
        prepared: training and validation cases.
        sampler: sampler of the training.
        network: network to train.
        device: device of the network.
        validation_interval: optimizer steps between two validations.
        num_samples: crops per scan.
    """
    if idist.get_rank() != 0:
        return
    size, length = size_of_run(folder, sampler, network, device), length_of(sampler, num_samples)
    logger.info("%s; %s; validation every %s", size, length, counted(validation_interval, "step"))
    keep_remarks(folder, prepared)
