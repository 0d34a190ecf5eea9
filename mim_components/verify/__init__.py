"""Judge a downloaded bundle without running or importing anything of it: `python -m mim_components.verify BUNDLE`."""

from mim_components.verify.bundle import judge_bundle
from mim_components.verify.findings import Finding

__all__ = ["Finding", "judge_bundle"]
