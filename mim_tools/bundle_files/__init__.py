"""Files that all bundles of a workflow share: their only source, and the command that copies them into the bundles.

What is particular to a dataset is in a bundle's `configs/metadata.json`; everything here is the same in every bundle.
"""

from mim_tools.bundle_files.copies import BundleFilesError, find_bundles, update_bundle

__all__ = ["BundleFilesError", "find_bundles", "update_bundle"]
