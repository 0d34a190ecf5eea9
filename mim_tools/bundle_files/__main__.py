"""Command: bring the shared files of bundles up to date, `python -m mim_tools.bundle_files [FOLDER ...]`.

Exit code 0: up to date, or updated; 1: `--check` found stale copies; 2: wrong usage, or a folder that is not a
bundle.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mim_tools.bundle_files.copies import SOURCES, BundleFilesError, find_bundles, update_bundle

OK, STALE, USAGE = 0, 1, 2
DONE = {"missing": "written", "differs": "replaced"}
EPILOG = f"""The copies are generated: changes to them are overwritten without asking, and --check shows them.
Change one bundle in its configs/metadata.json; change all of them in the source, {SOURCES}."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: command-line arguments; None = those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mim_tools.bundle_files",
        description="Copy the files that bundles of a workflow share (configs, logging.conf, LICENSE) into bundles.",
        epilog=EPILOG,
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="bundles (default: those below ./bundles)")
    parser.add_argument("--check", action="store_true", help="write nothing; list missing and differing copies")
    options = parser.parse_args(arguments)
    try:
        folders = options.folders or find_bundles()
        if not folders:
            raise BundleFilesError("bundles: no bundle with a workflow here; name the folders.")
        stale = {folder: update_bundle(folder, options.check) for folder in folders}
    except (BundleFilesError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return USAGE
    for folder, files in stale.items():
        for name, state in files.items():
            print(f"{folder}/{name}: {state if options.check else DONE[state]}")
    count = sum(map(len, stale.values()))
    print(f"bundles: {len(folders)}, {'stale files' if options.check else 'files written'}: {count}")
    return STALE if options.check and count else OK


if __name__ == "__main__":
    sys.exit(main())
