"""Quality of an encoder's frozen features: a linear classifier and nearest neighbours."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice
from torch import Tensor, nn
from tqdm import tqdm

from mim_components.data.check.segmentation import SegmentationChecker
from mim_components.data.names import is_anonymous
from mim_components.data.prepare.cases import PreparedCases, prepare_cases
from mim_components.data.prepare.phase import check_options
from mim_components.data.prepare.quarantine import MAX_BAD_FRACTION
from mim_components.data.volumes import DataError, per_axis
from mim_components.labels import LabelSet
from mim_components.metrics.probe.cases import (
    check_classes,
    check_sections,
    find_probe_cases,
    probe_labels,
    probe_transform,
    read_label_values,
)
from mim_components.metrics.probe.features import RawFeatures, WindowFeatures, add_position
from mim_components.metrics.probe.grids import nearest_on_grid
from mim_components.metrics.probe.heads import (
    LinearClassifier,
    fit_linear,
    maximise_dice,
    nearest_classes,
    recalls,
    stacked,
)
from mim_components.metrics.probe.result import ProbeResult, mean_case
from mim_components.metrics.probe.voxels import BIAS_SHARE, DrawnVoxels, draw_voxels
from mim_components.metrics.segmentation import CaseResult, TargetScore, mean_of
from mim_components.utils.text import bar_options
from mim_components.visualize.overlay import OverlayPicture, overlay_picture
from mim_components.weights.contract import InputContract

logger = logging.getLogger(__name__)


@dataclass
class _Voxels:
    """Sampled voxels of scans: features `(n, F)`, classes, patients and numbers of the draws `(n,)`."""

    features: Tensor
    classes: Tensor
    patients: Tensor
    draws: Tensor

    def of(self, draw: int) -> _Voxels:
        """The voxels of one draw."""
        return _Voxels(*(getattr(self, each.name)[self.draws == draw] for each in fields(self)))


class FeatureProbe:
    """Fit a linear classifier on voxels of the training scans, and score it on the validation scans.

    The recipe is fixed, and the classifier uses the training scans only: its biases are set for the best Dice on
    voxels of them that the fit has not seen. The same voxels are drawn from every scan whatever the encoder:
    `voxels_per_class` of each class, and `BACKGROUND_SHARE` times as many of the background. As the figures depend on
    the voxels drawn, all of it is done for several draws, with one classifier each, and averaged.

    All processes of a run construct it together; then one of them may call it.

    Args:
        datalist: labelled scans, a JSON list with the sections `training` and `validation`.
        contract: input contract of the encoder.
        cache_dir: folder that caches results of checks.
        labels: class name to value in the label maps; None = the values above 0 that occur in both sections.
        allow_outside: accept paths in the list that lead out of its folder.
        on_bad: "stop" raises if a scan or label map is bad, "exclude" leaves it out.
        max_bad_fraction: largest share of the scans that "exclude" may leave out.
        num_workers: number of processes that check scans.
        output_dir: folder for the findings of the checks; None = not written.
        anonymous_paths: name scans by digests.
        voxels_per_class: largest number of voxels drawn from a scan per class; in a training scan at most half of a
            class, since the biases need the others.
        neighbours: number of nearest voxels that vote.
        overlap: overlap of windows, in [0, 1); reduced so that they begin at token edges.
        sw_batch_size: windows that go through the encoder together.
        seed: seed of the draws.
        draws: number of independent draws.
        dataset_dir: folder that the paths in the list are relative to; None = the folder of the list.

    Raises:
        DataError: no list, a list without section `validation`, classes that are not distinct values from 1 on, a
            class without voxels in the usable scans of a section, or bad scans; when called: a class that has no
            voxel once the training scans are resampled.
        ValueError: `voxels_per_class` or `draws` is below 1.

    Attributes:
        settings: description of the probe for reports.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> import nibabel as nib
        >>> label = np.zeros((16, 16, 16), np.uint8)
        >>> label[4:12, 4:12, 4:12] = 1
        >>> contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))
        >>> with TemporaryDirectory() as folder:
        ...     items = []
        ...     for number in (1, 2):
        ...         item = {kind: str(Path(folder, f"{kind}{number}.nii")) for kind in ("image", "label")}
        ...         image = np.int16(number + np.arange(16) + 500.0 * label)
        ...         nib.Nifti1Image(image, np.eye(4)).to_filename(item["image"])
        ...         nib.Nifti1Image(label, np.eye(4)).to_filename(item["label"])
        ...         items.append(item)
        ...     _ = Path(folder, "list.json").write_text(json.dumps({"training": items[:1], "validation": items[1:]}))
        ...     probe = FeatureProbe(Path(folder, "list.json"), contract, folder)
        ...     probe(None).dice
        1.0
    """

    def __init__(
        self,
        datalist: str | Path | None,
        contract: InputContract,
        cache_dir: str | Path,
        labels: Mapping[str, int] | None = None,
        allow_outside: bool = False,
        on_bad: str = "stop",
        max_bad_fraction: float = MAX_BAD_FRACTION,
        num_workers: int = 0,
        output_dir: str | Path | None = None,
        anonymous_paths: bool = False,
        voxels_per_class: int = 128,
        neighbours: int = 10,
        overlap: float = 0.5,
        sw_batch_size: int = 4,
        seed: int = 0,
        draws: int = 3,
        dataset_dir: str | Path | None = None,
    ) -> None:
        for name, value in (("voxels_per_class", voxels_per_class), ("draws", draws)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.contract = contract
        self.voxels_per_class = voxels_per_class
        self.neighbours = neighbours
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.seed = seed
        self.draws = draws
        check_classes(labels)
        found = find_probe_cases(datalist, allow_outside, dataset_dir)
        check_options(on_bad, max_bad_fraction, num_workers)  # before hours of reading
        named = found.named_by_digests() if is_anonymous(anonymous_paths) else found
        values = read_label_values(named, cache_dir, num_workers)
        self.labels: LabelSet = probe_labels(values, labels)
        self.prepared: PreparedCases = prepare_cases(
            found,
            SegmentationChecker(self.labels, modality=contract.modality.upper()),
            {"rule": "fifths"},  # unused: the list has sections
            cache_dir=cache_dir,
            on_bad=on_bad,
            max_bad_fraction=max_bad_fraction,
            num_workers=num_workers,
            output_dir=output_dir,
            name="probe",
            anonymous_paths=anonymous_paths,
        )
        # a scan that was left out may have been the only one with a class
        used = {"training": self.prepared.training, "validation": self.prepared.validation}
        titles = {section: [item["name"] for item in items] for section, items in used.items()}
        classes = {self.labels.names[number]: value for value, number in self.labels.values.items() if number}
        check_sections(classes, values, titles, self.prepared.bad)
        self.load = probe_transform(contract, self.labels)
        self.settings = {
            "datalist": None if datalist is None else str(datalist),
            "voxels_per_class": voxels_per_class,
            "neighbours": neighbours,
            "overlap": overlap,
            "seed": seed,
            "draws": draws,
        }
        self._values = [0, *classes.values()]  # in the order of the classes, see `probe_labels`
        groups = sorted({item["group"] for item in self.prepared.training + self.prepared.validation})
        self._patients = {group: number for number, group in enumerate(groups)}

    def __call__(self, encoder: nn.Module | None, pictures: bool = False, title: str = "") -> ProbeResult:
        """Probe an encoder, which stays unchanged; None = intensity and position instead of features.

        Args:
            encoder: network that returns a list of maps.
            pictures: keep slices of every validation scan, about 1 MB each.
            title: title of a progress bar; "" = no bar.
        """
        network = RawFeatures() if encoder is None else encoder
        training = network.training
        network.eval()
        try:
            windows = WindowFeatures(
                network,
                self.contract.input_size,
                self.contract.patch_size,
                self.overlap,
                self.sw_batch_size,
                padding="constant" if encoder is not None else "replicate",
            )
            return self._probe(windows, encoder is None, pictures, title)
        finally:
            network.train(training)

    def _probe(self, windows: WindowFeatures, raw: bool, pictures: bool, title: str) -> ProbeResult:
        priors = torch.zeros(self.labels.out_channels, dtype=torch.int64)
        parts = []
        for item in self._items(self.prepared.training, raw, f"{title}, training" if title else ""):
            priors += self._counts(item)
            parts.append(self._voxels(item, windows, self._draw(item, BIAS_SHARE)[0]))
        if 0 in (counts := priors.tolist()):
            how = f" resampled to {per_axis(self.contract.spacing)} mm" if self.contract.spacing else ""
            raise DataError(
                f"probe::labels: class {self.labels.names[counts.index(0)]!r} has no voxel in the training scans{how}."
            )
        bank = _joined(parts)
        banks = [bank.of(draw) for draw in range(self.draws)]
        classifiers = [fit_linear(each.features, each.classes, priors) for each in banks]
        # largest first: an order of their own, whatever other classes there are
        order = sorted(range(1, len(priors)), key=lambda number: (-counts[number], self.labels.names[number]))
        classifiers = self._with_best_dice(classifiers, order, windows, raw, f"{title}, biases" if title else "")
        parts, slices = [], {}
        results: list[list[CaseResult]] = []
        for item in self._items(self.prepared.validation, raw, f"{title}, validation" if title else ""):
            parts.append(self._voxels(item, windows, self._draw(item, others=0)[0]))
            results.append([])
            for number, pred in enumerate(windows.classify(item["input"], classifiers).split(1)):
                if item["image"].shape != item["own_label"].shape:
                    pred = nearest_on_grid(pred, item["image"].affine, item["own_label"])
                results[-1].append(self._score(item, pred))
                if pictures and number == 0:
                    slices[str(item["name"])] = _slices(item, pred)
        queries = _joined(parts)
        shares = [self._retrieval(queries.of(draw), each) for draw, each in enumerate(banks)]
        retrieval = dict(zip(self.labels.names, map(mean_of, zip(*shares, strict=True)), strict=True))
        draw_dice = [ProbeResult(list(each), {}).dice for each in zip(*results, strict=True)]
        result = ProbeResult([mean_case(each) for each in results], retrieval, slices, draw_dice)
        logger.info("%s", f"probe{title and ' of '}{title}: Dice {result.dice:.4f}{result.spread}")
        return result

    def _with_best_dice(
        self,
        classifiers: Sequence[LinearClassifier],
        order: Sequence[int],
        windows: WindowFeatures,
        raw: bool,
        title: str,
    ) -> list[LinearClassifier]:
        """Set the biases on other voxels of the training scans than those of the fit, to which it is over-fitted."""
        logits, classes, draws, stands_for = [], [], [], []
        for item in self._items(self.prepared.training, raw, title):
            drawn = self._draw(item, BIAS_SHARE)[1]
            every = windows.at(item["input"], drawn.indices, stacked(classifiers)).unflatten(1, (self.draws, -1))
            logits.append(every[torch.arange(len(every)), drawn.draws])
            counts = self._counts(item)
            stands_for.append(
                (self.draws * counts / torch.bincount(drawn.classes, minlength=len(counts)))[drawn.classes]
            )
            classes.append(drawn.classes)
            draws.append(drawn.draws)
        sample = [torch.cat(each) for each in (logits, classes, stands_for)]
        rows = [torch.cat(draws) == draw for draw in range(self.draws)]
        return [
            maximise_dice(classifier, sample[0][own], sample[1][own], sample[2][own], order)
            for classifier, own in zip(classifiers, rows, strict=True)
        ]

    def _retrieval(self, queries: _Voxels, bank: _Voxels) -> list[float]:
        """Share of the queries of every class whose neighbours give it."""
        found = nearest_classes(
            queries.features, queries.patients, bank.features, bank.classes, bank.patients, self.neighbours
        )
        return recalls(found, queries.classes, self.labels.out_channels)

    def _items(self, items: Sequence[Mapping[str, Any]], raw: bool, title: str) -> Iterator[dict[str, Any]]:
        """Load the scans one by one; `input` is what the encoder sees."""
        for item in tqdm(items, desc=title, unit="scan", disable=not title, leave=False, **bar_options()):
            loaded: Any = self.load(dict(item))
            image = loaded["image"].as_tensor()
            loaded["input"] = add_position(image) if raw else image
            yield loaded

    def _counts(self, item: Mapping[str, Any]) -> Tensor:
        """Number of voxels of every class in a label map, `(K,)`."""
        return torch.bincount(item["label"].as_tensor().flatten().long(), minlength=self.labels.out_channels).cpu()

    def _draw(self, item: Mapping[str, Any], others: int) -> tuple[DrawnVoxels, DrawnVoxels]:
        label, key = item["label"].as_tensor()[0], (self.seed, "probe", str(item["name"]))
        return draw_voxels(label, self._values, self.voxels_per_class, self.draws, others, key)

    def _voxels(self, item: Mapping[str, Any], windows: WindowFeatures, drawn: DrawnVoxels) -> _Voxels:
        patients = torch.full_like(drawn.classes, self._patients[item["group"]])
        return _Voxels(windows.at(item["input"], drawn.indices), drawn.classes, patients, drawn.draws)

    def _score(self, item: Mapping[str, Any], pred: Tensor) -> CaseResult:
        """Dice of every class on the scan's own voxels."""
        label = item["own_label"].as_tensor()
        numbers = range(1, self.labels.out_channels)
        dice = compute_dice(pred[None], label[None], include_background=False, num_classes=self.labels.out_channels)
        voxel = abs(float(np.linalg.det(item["own_label"].affine[:3, :3].cpu().numpy()))) / 1000  # ml
        scores = [
            TargetScore(float(each), math.nan, int((label == n).sum()) * voxel, int((pred == n).sum()) * voxel)
            for n, each in zip(numbers, dice[0].tolist(), strict=True)
        ]
        return CaseResult(str(item["name"]), dict(zip(self.labels.targets, scores, strict=True)))


def _joined(parts: Sequence[_Voxels]) -> _Voxels:
    return _Voxels(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(_Voxels)))


def _slices(item: Mapping[str, Any], pred: Tensor) -> OverlayPicture:
    label = item["own_label"]
    image = item["image"].as_tensor()
    if image.shape != label.shape:
        image = nearest_on_grid(image, item["image"].affine, label)
    label_map, pred_map = (each.cpu().numpy().astype(np.uint8) for each in (label, pred))
    return overlay_picture(image.cpu().numpy(), label_map, pred_map, label.affine.cpu().numpy().astype(float))
