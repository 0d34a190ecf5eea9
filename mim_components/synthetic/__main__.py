"""Command: write synthetic CTs to a folder."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from mim_components.synthetic.dataset import write_synthetic_dataset
from mim_components.synthetic.generate import DESCRIPTION


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and write the data set.

    Args:
        arguments: words of the command line; None takes those of the process.

    Returns:
        Exit status, 0 on success; 1 when an argument or the disk is at fault, with the cause on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mim_components.synthetic", description=f"Write CTs: {DESCRIPTION}."
    )
    parser.add_argument("output_dir", help="folder to write to")
    parser.add_argument("--num_volumes", type=int, default=4, help="how many volumes")
    parser.add_argument("--spatial_size", type=int, nargs=3, default=(128, 128, 96), help="H W D in voxels")
    parser.add_argument("--spacing", type=float, nargs=3, default=(3.0, 3.0, 4.0), help="voxel size in mm")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same volumes")
    parser.add_argument("--vary", action="store_true", help="change size and spacing a little from volume to volume")
    parser.add_argument("--no_labels", action="store_true", help="write images only")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        files = write_synthetic_dataset(
            args.output_dir,
            args.num_volumes,
            seed=args.seed,
            spatial_size=args.spatial_size,
            spacing=args.spacing,
            with_labels=not args.no_labels,
            vary=args.vary,
            progress=True,
        )
    except (ValueError, OSError) as error:
        print(f"ERROR {args.output_dir}: {error}", file=sys.stderr)
        return 1
    print(f"{args.output_dir}: {len(files)} volumes in images/, listed in dataset.json ({DESCRIPTION})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
