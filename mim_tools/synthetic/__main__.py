"""Command: write synthetic CTs to a folder, or a synthetic dataset in the layout of a public one."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from mim_tools.synthetic.dataset import write_synthetic_dataset
from mim_tools.synthetic.generate import DESCRIPTION
from mim_tools.synthetic.layouts import LAYOUTS, write_synthetic_layout


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and write the dataset.

    Args:
        arguments: words of the command line; None takes those of the process.

    Returns:
        Exit status: 0 on success, 1 if an argument or the disk is at fault, with the cause on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m mim_tools.synthetic", description=f"Write CTs: {DESCRIPTION}.")
    parser.add_argument("output_dir", help="folder to write to")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="write a dataset as it comes from its archive")
    parser.add_argument(
        "--num_volumes", type=int, default=4, help="number of volumes, or of labelled cases of a layout"
    )
    parser.add_argument(
        "--spatial_size", type=int, nargs=3, help="H W D in voxels (128 128 96; with --layout 96 80 72)"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, help="voxel size in mm (3 3 4; with --layout it fits the region)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same volumes")
    parser.add_argument("--vary", action="store_true", help="vary size and spacing a little between volumes")
    parser.add_argument("--no_labels", action="store_true", help="write images only")
    args = parser.parse_args(arguments)
    if args.layout and (args.vary or args.no_labels):
        parser.error("--vary and --no_labels cannot be combined with --layout")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(_write_layout(args) if args.layout else _write_dataset(args))
    except (ValueError, OSError) as error:
        print(f"ERROR {args.output_dir}: {error}", file=sys.stderr)
        return 1
    return 0


def _write_dataset(args: argparse.Namespace) -> str:
    files = write_synthetic_dataset(
        args.output_dir,
        args.num_volumes,
        seed=args.seed,
        spatial_size=args.spatial_size or (128, 128, 96),
        spacing=args.spacing or (3.0, 3.0, 4.0),
        with_labels=not args.no_labels,
        vary=args.vary,
        progress=True,
    )
    return f"{args.output_dir}: {len(files)} volumes in images/, listed in dataset.json ({DESCRIPTION})"


def _write_layout(args: argparse.Namespace) -> str:
    root = write_synthetic_layout(
        args.output_dir,
        args.layout,
        args.num_volumes,
        seed=args.seed,
        spatial_size=args.spatial_size or (96, 80, 72),
        spacing=args.spacing,
        progress=True,
    )
    return f"{root}: {args.num_volumes} labelled cases in the layout of {args.layout} (synthetic, no patients)"


if __name__ == "__main__":
    sys.exit(main())
