"""Check CT or MR volumes and fill the cache before training: `python -m mim_tools.prepare DIR`.

Exit code 0: all volumes are usable, or the bad ones were left out as requested; 1: volumes are bad, or more than may be
left out; 2: wrong usage, no volumes, or a cache that cannot be written.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from mim_components.data import BadVolumesError, DataError, FoundVolumes, PreparedDataset, find_sources, prepare_volumes
from mim_components.data.cache.volumes import VERIFY
from mim_components.data.find.collections import COLLECTIONS, CollectionVolumes
from mim_components.data.find.sources import path_of_name
from mim_components.data.names import name_sources
from mim_components.data.prepare.quarantine import MAX_BAD_FRACTION
from mim_components.transforms.intensity import MODALITIES
from mim_components.utils.text import counted, printable

OK, BAD_VOLUMES, USAGE = 0, 1, 2
VERIFIED = "check of cached files: checksums, sizes, or (default) checksums once and again of what was touched since"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: command-line arguments; None = those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, format="%(message)s")
    try:
        if options.name_of:
            print(path_of_name(options.name_of, options.dataset_dir or options.data_root or "."))
            return OK
        found = find_sources(
            options.dataset_dir,
            options.datalist,
            options.collection,
            options.data_root,
            options.datalist_key,
            options.allow_outside,
            options.modality,
        )
        if options.anonymous_paths:
            found = name_sources(found)
        _announce(found)
        dataset = prepare_volumes(
            found,
            options.cache_dir,
            on_bad=options.on_bad,
            max_bad_fraction=options.max_bad_fraction,
            num_workers=options.num_workers,
            verify=options.verify,
            output_dir=options.output_dir,
            spacing=options.spacing,
            modality=options.modality,
        )
    except BadVolumesError as error:
        print(_table(error))
        print(f"ERROR {error.bad[0]}. Do: {_advice(error)}", file=sys.stderr)
        return BAD_VOLUMES
    except DataError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return USAGE
    _report(dataset)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mim_tools.prepare", description=__doc__)
    parser.add_argument("dataset_dir", nargs="?", help="folder to search for volumes")
    parser.add_argument("--datalist", help="JSON list of volumes; its paths are relative to dataset_dir or to itself")
    parser.add_argument("--datalist_key", default="training", help="section of the list (default: %(default)s)")
    parser.add_argument("--allow_outside", action="store_true", help="paths in the list may lead out of their folder")
    parser.add_argument("--collection", choices=sorted(COLLECTIONS), help="the paper's sets, found below --data_root")
    parser.add_argument("--data_root", help="folder that holds the unpacked sets of the collection")
    parser.add_argument("--cache_dir", default="mim_cache", help="folder of the cache (default: ./%(default)s)")
    parser.add_argument("--on_bad", choices=("stop", "exclude"), default="stop", help="what to do with bad volumes")
    parser.add_argument(
        "--max_bad_fraction",
        type=float,
        default=MAX_BAD_FRACTION,
        help="share of all volumes that may be left out (default: %(default)s)",
    )
    parser.add_argument("--output_dir", help="folder for quarantine.jsonl and passed_over.jsonl (default: none)")
    parser.add_argument("--anonymous_paths", action="store_true", help="name volumes by digests of their paths")
    parser.add_argument("--name_of", metavar="DIGEST", help="print the path that scan-... stands for")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode (default: this one)")
    parser.add_argument("--modality", choices=MODALITIES, default="ct", help="of the volumes, as in the training")
    parser.add_argument("--spacing", type=_numbers, help="resample to [R,A,S] mm, as in the training (default: native)")
    parser.add_argument("--verify", choices=VERIFY, default="auto", help=VERIFIED)
    parser.add_argument("--verbose", action="store_true", help="log details")
    return parser


def _numbers(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as [1.5,1.5,2], got {text!r}") from error


def _announce(found: FoundVolumes) -> None:
    if isinstance(found, CollectionVolumes):
        print(found.table())
    print(f"{counted(len(found), 'volume')} found")
    for note in found.notes:
        print(f"note: {printable(note)}")


def _report(dataset: PreparedDataset) -> None:
    print(dataset.summary())
    print(f"digest  {dataset.digest}")


def _advice(error: BadVolumesError) -> str:
    if error.max_bad_fraction is None:
        return "repair or remove it, or leave it out with --on_bad exclude."
    return f"repair or remove the bad ones, or raise --max_bad_fraction above {len(error.bad) / error.total:.3f}."


def _table(error: BadVolumesError) -> str:
    paths = [printable(item.path) for item in error.bad]
    width = max(map(len, paths))
    rows = [f"{path:<{width}}  {printable(item.cause)}" for path, item in zip(paths, error.bad, strict=True)]
    limit = "" if error.max_bad_fraction is None else f", --max_bad_fraction is {error.max_bad_fraction:g}"
    return "\n".join([f"{len(error.bad)} of {error.total} volumes are bad{limit}:", f"{'file':<{width}}  cause", *rows])


if __name__ == "__main__":
    sys.exit(main())
