"""Handling of optimizer steps whose loss or gradient is not finite: no update, a report, stop or skip."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from mim_components.data.load.sampler import StepSampler
from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.configuration import bundle_root
from mim_components.run.folder import RunFolder
from mim_components.utils.files import write_text_safely
from mim_components.utils.text import CONTINUES, counted, sentence

logger = logging.getLogger(__name__)

ACTIONS = ("stop", "skip")
MOST_NAMES = 50  # parameter names in a report


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not finite; the weights were not updated. Names the step, terms and volumes."""


class MicroBatch(NamedTuple):
    """Record of a micro-batch of the current step.

    Attributes:
        names: names of its volumes.
        terms: terms of its loss, detached scalars, already divided by the number of micro-batches.
    """

    names: list[str]
    terms: dict[str, Tensor]


class NonFiniteGuard:
    """Checks every step before its update, with the same verdict in all processes.

    A step that is not finite changes neither weights nor momentum, and leaves `nonfinite_step_XXXXXXXX.json` in the
    run folder, from which `python -m mim_tools.rebuild_batch` rebuilds its batch.

    Args:
        action: "stop" raises; "skip" continues with the next step, and the schedule advances as usual.
        max_skipped: maximum number of consecutive skipped steps.
        folder: run folder for reports; None = no report.
        sampler: sampler that knows the samples of a step; None = they are not reported.

    Attributes:
        skipped: number of steps skipped in the whole run.

    Raises:
        ValueError: unknown `action`, or `max_skipped` is less than 1.
    """

    def __init__(
        self,
        action: str = "stop",
        max_skipped: int = 5,
        folder: RunFolder | None = None,
        sampler: StepSampler | None = None,
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(f"on_nonfinite must be one of {', '.join(ACTIONS)}, got {action!r}.")
        if max_skipped < 1:
            raise ValueError(
                f"max_skipped must be at least 1, got {max_skipped}; use --train::step::on_nonfinite stop for none."
            )
        self.action = action
        self.max_skipped = max_skipped
        self.folder = folder
        self.sampler = sampler
        self.skipped = 0
        self.in_a_row = 0
        self._bundle_root = bundle_root()

    def accepts(self, norm: Tensor, loss: Tensor) -> bool:
        """Whether the gradient norm and the loss are finite in all processes."""
        accepted = self.all_finite(norm, loss)
        if accepted:
            self.in_a_row = 0
        return accepted

    @staticmethod
    def all_finite(*values: Tensor) -> bool:
        """Whether scalars are finite in all processes; unlike the gradient, the loss differs between them."""
        good = torch.stack([torch.isfinite(value) for value in values]).all()
        if idist.get_world_size() > 1:
            good = torch.as_tensor(idist.all_reduce(good.float(), op="MIN")) > 0
        return bool(good)

    def refuse(self, step: int, network: nn.Module, norm: Tensor, seen: Sequence[MicroBatch]) -> None:
        """Report a step that was not accepted, while its gradients are still present.

        Raises:
            NonFiniteError: in all processes alike, unless the step is to be skipped.
        """
        self.in_a_row += 1
        report = self._report(step, network, norm, seen)
        path = self._write(step, report)
        text = _describe(report, seen)
        if path is not None:
            text += f"\nReport: {path}; to rebuild the batch: python -m mim_tools.rebuild_batch {path}"
        if self.action == "skip" and self.in_a_row <= self.max_skipped:
            self.skipped += 1
            logger.warning("step %d is skipped: %s", step, text)
            return
        if self.action == "skip":
            text = f"{self.in_a_row} steps in a row are not finite (max_skipped {self.max_skipped}); {text}"
        raise NonFiniteError(f"{text}\n{self._advice()}")

    def state_dict(self) -> dict[str, int]:
        """The counts of skipped steps."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counts."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])

    @property
    def summary(self) -> str:
        """One line for the end of the run; empty if no step was skipped."""
        if not self.skipped:
            return ""
        steps = counted(self.skipped, "step")
        return f"{steps} skipped because loss or gradient was not finite: see nonfinite_step_*.json"

    def _report(self, step: int, network: nn.Module, norm: Tensor, seen: Sequence[MicroBatch]) -> dict[str, Any]:
        bad = [
            name
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        own = {"rank": idist.get_rank(), "micro_batches": self._samples(step, seen)}
        ranks: Any = idist.all_gather(own) if idist.get_world_size() > 1 else [own]
        return {
            "step": step,
            "seed": None if self.sampler is None else self.sampler.seed,
            "gradient_norm": _plain(norm),
            "first": _first(ranks, bad),
            "parameters_not_finite": len(bad),
            "parameters": bad[:MOST_NAMES],
            "ranks": ranks,
            "bundle_root": self._bundle_root,
        }

    def _samples(self, step: int, seen: Sequence[MicroBatch]) -> list[dict[str, Any]]:
        keys = [None] * len(seen) if self.sampler is None else self.sampler.samples_of(step - 1)
        return [
            {
                "samples": key,
                "names": micro.names,
                "terms": {name: _plain(value * len(seen)) for name, value in micro.terms.items()},
            }
            for key, micro in zip(keys, seen, strict=True)
        ]

    def _write(self, step: int, report: dict[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        path = self.folder.path / f"nonfinite_step_{step:08d}.json"
        if idist.get_rank() == 0:
            try:
                write_text_safely(path, json.dumps(report, indent=1, default=int))
            except OSError as error:  # such as a full disk; the non-finite step matters more
                logger.error("%s", error)
        return path

    def _advice(self) -> str:
        paths = [] if self.folder is None else CheckpointStore(self.folder.path / "checkpoints").paths()
        where = f"Last good checkpoint: {paths[-1]}. " if paths else "There is no checkpoint yet. "
        how = CONTINUES if self.folder is None else self.folder.how_to_continue
        return f"{where}{sentence(how)} from there; --train::step::on_nonfinite skip skips such steps."


def _plain(value: Tensor) -> float | str:
    """A finite number, or else its name, which JSON can hold."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _first(ranks: Sequence[dict[str, Any]], parameters: Sequence[str]) -> str:
    """The first non-finite value: a term of the loss with its volumes, else a gradient."""
    for rank in ranks:
        for micro in rank["micro_batches"]:
            terms = [name for name, value in micro["terms"].items() if isinstance(value, str)]
            if terms:
                inner = [name for name in terms if name != "loss"] or terms
                return f"{', '.join(inner)} of {', '.join(micro['names']) or 'a micro-batch'}"
    return f"gradient of {parameters[0]}" if parameters else "the norm, which is too large for float32"


def _describe(report: dict[str, Any], seen: Sequence[MicroBatch]) -> str:
    what = "gradient" if isinstance(report["gradient_norm"], str) else "loss"
    totals = {name: sum(float(micro.terms[name]) for micro in seen) for name in seen[0].terms} if seen else {}
    values = ", ".join(f"{name} {value:g}" for name, value in totals.items())
    files = [name for rank in report["ranks"] for micro in rank["micro_batches"] for name in micro["names"]]
    lines = "\n  ".join(dict.fromkeys(files))
    return (
        f"the {what} of step {report['step']} is not finite ({values}); the weights were not updated. "
        f"First: {report['first']}. Volumes of this step:\n  {lines}"
    )
