"""One run: its folder, its configuration, its checkpoints."""

from mim_components.runs.configuration import bundle_root, check_overrides
from mim_components.runs.errors import explain_errors
from mim_components.runs.folder import RunFolder, SettingsChangedError
from mim_components.runs.processes import local_device, start_processes, stop_processes

__all__ = [
    "RunFolder",
    "SettingsChangedError",
    "bundle_root",
    "check_overrides",
    "explain_errors",
    "local_device",
    "start_processes",
    "stop_processes",
]
