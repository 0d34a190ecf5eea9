"""Quality of an encoder's frozen features: a linear classifier and nearest neighbours."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.metrics import compute_dice
from monai.transforms import ResampleToMatch
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
from mim_components.metrics.probe.heads import LinearClassifier, fit_linear, maximise_dice, nearest_classes, recalls
from mim_components.metrics.segmentation import CaseResult, TargetScore, mean_of
from mim_components.randomness import keyed_seed
from mim_components.utils.tensors import without_meta
from mim_components.utils.text import bar_options
from mim_components.visualize.overlay import OverlayPicture, overlay_picture
from mim_components.weights.contract import InputContract

logger = logging.getLogger(__name__)

BACKGROUND_SHARE = 8  # background voxels per voxel of a class: the background is the most varied
BIAS_SHARE = 8  # voxels for the biases per voxel of the fit: false positives of a small class are rare


@dataclass
class ProbeResult:
    """Result of a probe.

    Attributes:
        cases: Dice of the linear classifier by validation scan and class; NaN where a label map lacks the class.
        retrieval: share of sampled voxels whose neighbours give their class, by class, the background first.
        pictures: slices of every validation scan by name, if requested.
    """

    cases: list[CaseResult]
    retrieval: dict[str, float]
    pictures: dict[str, OverlayPicture] = field(default_factory=dict)

    @property
    def class_dice(self) -> dict[str, float]:
        """Mean Dice of every class over the scans that have it."""
        return {name: mean_of(case.scores[name].dice for case in self.cases) for name in self.cases[0].scores}

    @property
    def dice(self) -> float:
        """Mean of the classes' mean Dice."""
        return mean_of(self.class_dice.values())

    @property
    def knn(self) -> float:
        """Mean of the classes' retrieval including the background: the balanced accuracy."""
        return mean_of(self.retrieval.values())


@dataclass
class _Voxels:
    """Sampled voxels of several scans: features `(n, F)`, classes and patients `(n,)`."""

    features: Tensor
    classes: Tensor
    patients: Tensor


class FeatureProbe:
    """Fit a linear classifier on voxels of the training scans, and score it on the validation scans.

    The recipe is fixed, and the classifier uses the training scans only: its biases are set for the best Dice on
    a second draw of their voxels. The same voxels are drawn from every scan whatever the encoder: `voxels_per_class` of
    each class, and `BACKGROUND_SHARE` times as many of the background.

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
        voxels_per_class: largest number of voxels drawn from a scan per class.
        neighbours: number of nearest voxels that vote.
        overlap: overlap of windows, in [0, 1); reduced so that they begin at token edges.
        sw_batch_size: windows that go through the encoder together.
        seed: seed of the draws.

    Raises:
        DataError: no list, a list without section `validation`, classes that are not distinct values from 1 on, a
            class without voxels in the usable scans of a section, or bad scans; when called: a class that has no
            voxel once the training scans are resampled.
        ValueError: `voxels_per_class` is below 1.

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
    ) -> None:
        if voxels_per_class < 1:
            raise ValueError(f"voxels_per_class must be at least 1, got {voxels_per_class}.")
        self.contract = contract
        self.voxels_per_class = voxels_per_class
        self.neighbours = neighbours
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.seed = seed
        check_classes(labels)
        found = find_probe_cases(datalist, allow_outside)
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
        }
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
            parts.append(self._voxels(item, windows))
        if 0 in (counts := priors.tolist()):
            how = f" resampled to {per_axis(self.contract.spacing)} mm" if self.contract.spacing else ""
            raise DataError(
                f"probe::labels: class {self.labels.names[counts.index(0)]!r} has no voxel in the training scans{how}."
            )
        bank = _joined(parts)
        classifier = fit_linear(bank.features, bank.classes, priors)
        classifier = self._with_best_dice(classifier, windows, raw, f"{title}, biases" if title else "")
        parts, results, slices = [], [], {}
        for item in self._items(self.prepared.validation, raw, f"{title}, validation" if title else ""):
            parts.append(self._voxels(item, windows))
            pred = windows.classify(item["input"], classifier).unsqueeze(0)
            if item["image"].shape != item["own_label"].shape:
                on_input = MetaTensor(pred, affine=item["image"].affine)
                pred = without_meta(ResampleToMatch(mode="nearest")(on_input, item["own_label"]))
            results.append(self._score(item, pred))
            if pictures:
                slices[results[-1].name] = _slices(item, pred)
        queries = _joined(parts)
        found = nearest_classes(
            queries.features, queries.patients, bank.features, bank.classes, bank.patients, self.neighbours
        )
        shares = recalls(found, queries.classes, self.labels.out_channels)
        return ProbeResult(results, dict(zip(self.labels.names, shares, strict=True)), slices)

    def _with_best_dice(
        self, classifier: LinearClassifier, windows: WindowFeatures, raw: bool, title: str
    ) -> LinearClassifier:  # fmt: skip
        """Set the biases on other voxels of the training scans than those of the fit, to which it is over-fitted."""
        logits, classes, stands_for = [], [], []
        for item in self._items(self.prepared.training, raw, title):
            voxels, drawn = self._sample(item, "biases", BIAS_SHARE * self.voxels_per_class)
            counts = self._counts(item)
            stands_for.append((counts / torch.bincount(drawn, minlength=len(counts)))[drawn])
            logits.append(F.linear(windows.at(item["input"], voxels), *classifier))
            classes.append(drawn)
        return maximise_dice(classifier, torch.cat(logits), torch.cat(classes), torch.cat(stands_for))

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

    def _sample(self, item: Mapping[str, Any], purpose: str, per_class: int) -> tuple[Tensor, Tensor]:
        return self._draw(item["label"].as_tensor()[0].cpu().numpy(), str(item["name"]), purpose, per_class)

    def _draw(self, label: np.ndarray, name: str, purpose: str, per_class: int) -> tuple[Tensor, Tensor]:
        """Draw up to `per_class` voxels of every class of a label map: indices `(n, 3)` and classes `(n,)`."""
        random = np.random.default_rng(keyed_seed(self.seed, purpose, name))
        voxels, classes = [], []
        for number in range(self.labels.out_channels):
            there = np.flatnonzero(label == number)
            most = per_class * (1 if number else BACKGROUND_SHARE)
            drawn = random.choice(there, min(most, len(there)), replace=False)
            voxels.append(np.stack(np.unravel_index(drawn, label.shape), axis=1))
            classes += [number] * len(drawn)
        return torch.from_numpy(np.concatenate(voxels)), torch.tensor(classes)

    def _voxels(self, item: Mapping[str, Any], windows: WindowFeatures) -> _Voxels:
        voxels, classes = self._sample(item, "probe", self.voxels_per_class)
        patient = self._patients[item["group"]]
        return _Voxels(windows.at(item["input"], voxels), classes, torch.full_like(classes, patient))

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
    image = item["image"]
    if image.shape != label.shape:
        image = ResampleToMatch(mode="bilinear")(image, label)
    label_map, pred_map = (each.cpu().numpy().astype(np.uint8) for each in (label, pred))
    return overlay_picture(image.cpu().numpy(), label_map, pred_map, label.affine.cpu().numpy().astype(float))
