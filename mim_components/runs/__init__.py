"""One run: its folder, its configuration, its checkpoints."""

from mim_components.runs.configuration import bundle_root, check_overrides
from mim_components.runs.errors import explain_errors
from mim_components.runs.folder import RunFolder, SettingsChangedError
from mim_components.runs.processes import local_device, start_processes, stop_processes
from mim_components.runs.start_checks import StartError, check_start, check_validation_start

__all__ = [
    "RunFolder",
    "SettingsChangedError",
    "StartError",
    "bundle_root",
    "check_overrides",
    "check_start",
    "check_validation_start",
    "explain_errors",
    "local_device",
    "start_processes",
    "stop_processes",
]
