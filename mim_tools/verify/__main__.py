"""Command: check a downloaded bundle without running it, `python -m mim_tools.verify BUNDLE`.

Exit code 0: nothing found; 1: findings; 2: wrong usage, or not a bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mim_components.utils.text import counted
from mim_tools.verify.bundle import judge_bundle
from mim_tools.verify.findings import table

CLEAN, FINDINGS, USAGE = 0, 1, 2
EPILOG = """It accepts only what is on a short list: a finding is a reason to read that place, not proof of an
attack; nor does a lack of findings prove a bundle harmless. See docs/security.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: command-line arguments; None = those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mim_tools.verify", description=__doc__, epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("bundle", help="folder of the bundle, or a zip archive of it")
    parser.add_argument(
        "--override",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="options that you were told to add to monai.bundle run; judged like the rest",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(arguments)
    try:
        _check_place(Path(options.bundle))
        findings = judge_bundle(options.bundle, options.override)
    except (ValueError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return USAGE
    if options.json:
        print(json.dumps([each.as_dict() for each in findings], indent=1))
    else:
        print(table(findings) if findings else f"{options.bundle}: nothing found")
        if findings:
            print(f"{counted(len(findings), 'finding')}: read these places before you run the bundle.")
    return FINDINGS if findings else CLEAN


def _check_place(bundle: Path) -> None:
    """Refuse to run inside the bundle, where `python -m` would import modules from it."""
    here, root = os.getcwd(), os.path.realpath(bundle)
    if bundle.is_dir() and os.path.commonpath([here, root]) == root and not getattr(sys.flags, "safe_path", False):
        raise ValueError(f"{bundle}: start the command from a folder outside the bundle, or with python -P.")


if __name__ == "__main__":
    sys.exit(main())
