"""Compare files of weights with the digests in `large_files.yml`, the Model Zoo's list of what is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mim_components.utils.files import sha256
from mim_tools.verify.configs import read_content
from mim_tools.verify.findings import Finding

NAMES = ("large_files.json", "large_files.yaml", "large_files.yml")


def judge_digests(root: Path, weights: list[str]) -> list[Finding]:
    """Judge the lists of a bundle, and the files against them.

    Args:
        root: folder of the bundle.
        weights: the files of weights that are there, as paths inside the bundle.
    """
    findings: list[Finding] = []
    listed: dict[str, str] = {}
    for name in NAMES:
        if (root / name).is_file():
            try:
                entries = read_content(root / name)["large_files"]
                for index, entry in enumerate(entries):
                    findings += _judge_entry(name, f"large_files::{index}", entry, listed)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                findings.append(Finding(name, "large_files", type(error).__name__, f"is no list of files: {error}"))
    for path in weights:
        if path not in listed:
            findings.append(Finding(path, "", "no digest", "no sha256 in large_files.yml; where it is from is unknown"))
        elif listed[path] and (digest := sha256(root / path)) != listed[path]:
            why = f"is not the file that large_files lists, whose sha256 is {listed[path]}"
            findings.append(Finding(path, "sha256", digest, why))
    return findings


def _judge_entry(file: str, key: str, entry: Any, listed: dict[str, str]) -> Iterator[Finding]:
    path, url = str(entry["path"]), str(entry.get("url", ""))
    value, kind = str(entry.get("hash_val") or ""), str(entry.get("hash_type") or "")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or re.search(r"[\\:\0]", path):
        yield Finding(file, f"{key}::path", path, "leads out of the bundle")
        return
    address = urlsplit(url)
    if address.scheme != "https" or not address.hostname or "@" in address.netloc:
        yield Finding(file, f"{key}::url", url, "is not a plain https address")
    known = kind.lower() == "sha256" and re.fullmatch(r"[0-9a-fA-F]{64}", value)
    if not known:
        what = f"{kind or 'no hash_type'} {value or 'no hash_val'}"
        yield Finding(file, f"{key}::hash_val", what, "no sha256, so the file cannot be checked")
    # an entry that is wrong has been named; the file needs no second finding
    listed[str(PurePosixPath(path))] = value.lower() if known else ""
