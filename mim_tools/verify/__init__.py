"""Check a downloaded bundle without running or importing any of it: `python -m mim_tools.verify BUNDLE`."""

from mim_tools.verify.bundle import judge_bundle
from mim_tools.verify.findings import Finding

__all__ = ["Finding", "judge_bundle"]
