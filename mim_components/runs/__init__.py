"""One run: its folder, its configuration, its checkpoints."""
