"""One run: its folder, its configuration, its checkpoints, its processes."""

from mim_components.run.checkpoints import CheckpointStore
from mim_components.run.configuration import bundle_root, check_overrides
from mim_components.run.folder import RunFolder, SettingsChangedError
from mim_components.run.processes import local_device, start_processes, stop_processes
from mim_components.run.start_checks import StartError, check_start, check_validation_start, sample_shapes

__all__ = [
    "CheckpointStore",
    "RunFolder",
    "SettingsChangedError",
    "StartError",
    "bundle_root",
    "check_overrides",
    "check_start",
    "check_validation_start",
    "local_device",
    "sample_shapes",
    "start_processes",
    "stop_processes",
]
