"""Weights of a training with their input contract, and loading them into networks."""

from mim_components.networks.training_modes import on_device
from mim_components.weights.contract import InputContract, ModelSettings, WrongWeightsError, read_contract
from mim_components.weights.pretrained import LoadReport, PretrainedError, load_pretrained, save_encoder
from mim_components.weights.trained import TrainedNetwork, load_trained
from mim_components.weights.transfer import start_from

__all__ = [
    "InputContract",
    "LoadReport",
    "ModelSettings",
    "PretrainedError",
    "TrainedNetwork",
    "WrongWeightsError",
    "load_pretrained",
    "load_trained",
    "on_device",
    "read_contract",
    "save_encoder",
    "start_from",
]
