"""Fine-tuning of a network on labelled scans: the step, validation, the best model, and how a run is begun."""

from mim_components.finetuning.averaging import UpdateAverage, averaged_network
from mim_components.finetuning.early_stop import EarlyStop
from mim_components.finetuning.plan import log_plan, steps_of
from mim_components.finetuning.step import FinetuneStep
from mim_components.finetuning.trained import ModelSettings, load_model, on_device

__all__ = [
    "EarlyStop",
    "FinetuneStep",
    "ModelSettings",
    "UpdateAverage",
    "averaged_network",
    "load_model",
    "log_plan",
    "on_device",
    "steps_of",
]
