"""The products of a pre-training: network and encoder weights."""

from __future__ import annotations

import logging
from dataclasses import replace

import ignite.distributed as idist
from ignite.engine import Engine, Events

from mim_components.data.volumes import PreparedDataset
from mim_components.networks.mim import MiM
from mim_components.run.folder import RunFolder
from mim_components.utils.files import FullDiskError
from mim_components.utils.tensor_files import save_safely
from mim_components.weights.contract import InputContract, write_training_volumes
from mim_components.weights.pretrained import save_encoder

logger = logging.getLogger(__name__)


class ExportHandler:
    """At the end, write `models/model.pt` (plain state dict) and `models/encoder.safetensors` (with its contract).

    Each has its digest, `.sha256`, beside it, and both have `training_volumes.txt`, which identifies the voxels of
    every training scan, so that an evaluation can tell which scans were seen.

    Args:
        folder: run folder.
        network: network without the wrapper for several devices.
        contract: input contract; the step is filled in.
        prepared: volumes of the training; None = not listed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.weights import read_contract
        >>> network = MiM(input_size=(16, 16, 16), preset="nano", num_levels=1)
        >>> contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(place)
        ...     ExportHandler(folder, network, contract).attach(trainer)
        ...     _ = trainer.run(range(3))
        ...     sorted(path.name for path in (folder.path / "models").iterdir())
        ...     read_contract(folder.path / "models/encoder.safetensors").step
        ['encoder.safetensors', 'encoder.safetensors.sha256', 'model.pt', 'model.pt.sha256']
        3
    """

    def __init__(
        self, folder: RunFolder, network: MiM, contract: InputContract, prepared: PreparedDataset | None = None
    ) -> None:
        self.prepared = prepared
        self.folder = folder
        self.network = network
        self.contract = contract

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files, in the first process.

        Raises:
            FullDiskError: the disk is full; the newest checkpoint is named.
        """
        if idist.get_rank() != 0 or engine.state.iteration < (engine.state.epoch_length or 0):
            return
        models = self.folder.path / "models"
        state = {name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        contract = replace(self.contract, step=engine.state.iteration)
        try:
            save_safely(models / "model.pt", state)
            save_encoder(self.network.encoder, models / "encoder.safetensors", contract)
            if self.prepared is not None:
                write_training_volumes(models, [volume.content for volume in self.prepared.volumes])
        except FullDiskError as error:  # a run is not finished without them, whatever `on_full_disk` is
            raise self.folder.with_advice(error) from error
