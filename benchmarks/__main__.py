"""All benchmarks in one call: `python -m benchmarks [--only encoder,step] [--output FOLDER]`.

Parts run one after the other, each in its own process, so that the peak memory of one does not count for another.
Numbers go to `benchmarks.json`, tables to `benchmarks.md`, both in `--output`. A failed part is named in both and
at the end; the others still run, and the exit status is 1.

`--device cpu` (default) runs all parts except those for a GPU; `--device cuda` runs only those. `--quick` runs each
part once at its smallest size: it shows that the command works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.report import ROOT, command, describe, environment, markdown_table, write_json

# threads that spin while they wait take cores from the others
THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


class Part(NamedTuple):
    """A module of `benchmarks` and the options it is run with."""

    title: str
    full: str
    quick: str


PARTS = {
    "encoder": Part(
        "Encoder, dense against sparse",
        "--batch 1 4 --repetitions 3",
        "--preset nano --size 32 --repetitions 1",
    ),
    "step": Part(
        "Step",
        "--repetitions 3",
        "--preset nano --size 32 --repetitions 1 --batch 1 --levels 64,64,32 32,32,32 --ct_size 80 80 48",
    ),
    "step_memory": Part("Memory of a step", "", "--preset nano --size 32 --levels 2"),
    "step_cost": Part("Cost of a step on CUDA, counted without one", "", "--preset nano --size 32 --levels 2"),
    "scaling": Part(
        "Scaling",
        "--repetitions 3",
        "--preset nano --levels_preset nano --levels 1 2 --size 32 --repetitions 1",
    ),
    "processes": Part(
        "Two processes",
        "--repetitions 2",
        "--preset nano --size 32 --levels 1 --repetitions 1",
    ),
    "data_path": Part(
        "Data path",
        "--repetitions 3",
        "--size 80 80 48 --levels 64,64,32 32,32,32 16,16,16 --input_size 32,32,32 --repetitions 1",
    ),
    "content": Part(
        "Children without content",
        "",
        "--draws 4 --thin 80,80,48 --thick 80,80,16 --levels 64,64,32 32,32,32 16,16,16 --input_size 32,32,32",
    ),
    "fine_tuning": Part("Fine-tuning", "", "--quick"),
    "inference": Part("Inference", "", "--quick"),
    **{
        f"gpu_{name}": Part(
            f"On a GPU: {title}",
            f"--part {name}",
            f"--part {name} --preset {'tiny --size 64' if name == 'networks' else 'nano --size 32'} --repetitions 1 "
            "--batch 1 "
            "--eager --matmul 64 --levels 64,64,32 32,32,32 --ct_size 80 80 48 --workers 0 --steps 3",
        )
        for name, title in {
            "depthwise": "depth-wise gradient and peaks",
            "compile": "compilation",
            "batch": "batches and memory",
            "training": "training from the cache",
            "networks": "fine-tuning and inference",
        }.items()
    },
}  # fmt: skip


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part; return the content of its file plus `seconds`, and `failed` if it failed."""
    part = PARTS[name]
    words = (part.quick if options.quick else part.full).split()
    module = name.partition("_")[0] if is_gpu(name) else name
    if is_gpu(name):
        words += ["--device", options.device]
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        print(f"\n## {part.title}\n", flush=True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", f"benchmarks.{module}", *words, "--json", str(path)],
                cwd=ROOT, env={**THREADS, **os.environ}, check=False, timeout=options.limit,
            )  # fmt: skip
            failed = f"exit status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            failed = f"not finished after {options.limit} s (--limit)"
        ended = {"seconds": perf_counter() - start}
        if failed:
            done_so_far = json.loads(path.read_text()) if path.is_file() else {}
            return {**done_so_far, **ended, "failed": failed, "command": _command(module, words)}
        return {**json.loads(path.read_text()), **ended, "command": _command(module, words)}


def is_gpu(name: str) -> bool:
    """Whether a part is one of `benchmarks.gpu`."""
    return name.startswith("gpu_")


def _command(name: str, words: Sequence[str]) -> str:
    return " ".join(["python -m", f"benchmarks.{name}", *words])


def document(content: Mapping[str, Any]) -> str:
    """The tables of all parts, in Markdown."""
    lines = [f"`{content['command']}`: {describe(content['environment'])}"]
    for name, part in content["parts"].items():
        lines += [f"## {PARTS[name].title}", f"```bash\n{part['command']}\n```"]
        if "failed" in part:
            lines.append(f"Failed: {part['failed']}.")
        for title, rows in part.get("tables", {}).items():
            lines += [f"{title}:", markdown_table(rows)]
    return "\n\n".join(lines) + "\n"


def chosen(options: argparse.Namespace) -> list[str]:
    """Names of the parts to run.

    Raises:
        ValueError: a part does not exist.
    """
    if options.only is None:
        return [name for name in PARTS if is_gpu(name) == (options.device == "cuda")]
    names: list[str] = options.only.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise ValueError(f"--only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}.")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all ran."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", help=f"comma-separated parts: {', '.join(PARTS)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--limit", type=float, default=7200, help="seconds after which a part is stopped")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, once")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"), help="folder for the two files")
    options = parser.parse_args(arguments)
    try:
        names = chosen(options)
    except ValueError as error:
        parser.error(str(error))
    content: dict[str, Any] = {"command": command(), "environment": environment(), "parts": {}}
    for name in names:
        content["parts"][name] = run_part(name, options)
        write_json(options.output / "benchmarks.json", content)  # not lost if the next part hangs
        (options.output / "benchmarks.md").write_text(document(content), encoding="utf-8")
    failed = [name for name, part in content["parts"].items() if "failed" in part]
    print(f"\n{len(names) - len(failed)} of {len(names)} parts ran: {options.output / 'benchmarks.md'}")
    for name in failed:
        print(f"failed: {name}, {content['parts'][name]['failed']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
