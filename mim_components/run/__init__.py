"""One run: its folder, its configuration, its checkpoints, its processes."""

from mim_components.run.checkpoints import CheckpointStore

__all__ = ["CheckpointStore"]
