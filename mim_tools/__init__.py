"""What a person runs: `python -m mim_tools.prepare`, `.synthetic`, `.verify`, `.bundle_files`, `.rebuild_batch`."""
