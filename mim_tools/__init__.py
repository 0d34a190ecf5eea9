"""Commands, `python -m mim_tools.X`: prepare, synthetic, verify, bundle_files, export, release, rebuild_batch."""
