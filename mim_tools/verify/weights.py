"""Judge files of weights and arrays: pickles may only name tensors, and digests must match."""

from __future__ import annotations

import ast
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from mim_components.utils.files import WrongDigestError, check_digest, digest_file, sha256
from mim_components.utils.tensor_files import what_it_is
from mim_tools.verify.configs import LISTS, read_content
from mim_tools.verify.findings import Finding

# suffixes of weights; files with other names are judged by their first bytes
SUFFIXES = (".bin", ".ckpt", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".th")
PICKLES = (".dill", ".joblib", ".pickle", ".pkl")
NOT_JUDGED = (".engine", ".h5", ".onnx", ".plan", ".torchscript", ".trt", ".ts")
LIBRARIES = (".dll", ".dylib", ".pyd", ".so")
GLOBALS = re.compile(
    r"collections OrderedDict"
    r"|torch (Size|device|(Bool|Byte|Char|Short|Int|Long|Half|Float|Double|BFloat16|Untyped)Storage"
    r"|bfloat16|bool|float16|float32|float64|int16|int32|int64|int8|uint8)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
)
_MOST_PICKLE = 256 * 2**20


def why_not(path: Path) -> str:
    """Why a file is not accepted; "" if it is, or if it is not a weights file."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return "a pickle; reading it runs code"
    if suffix in NOT_JUDGED:
        return "a file of a compiled network, which cannot be judged"
    try:
        with path.open("rb") as file:
            return _judge(path, file, file.read(8), suffix)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        return f"cannot be read: {error}"


def is_weights(path: Path) -> bool:
    """Whether a file holds weights or arrays, by its name or its first bytes."""
    if path.suffix.lower() in (*SUFFIXES, *PICKLES, *NOT_JUDGED):
        return True
    with path.open("rb") as file:
        return bool(re.match(rb"PK\x03\x04|\x80[\x02-\x05]|\x93NUMPY", file.read(8)))


def _judge(path: Path, file: IO[bytes], head: bytes, suffix: str) -> str:
    file.seek(0)
    if suffix == ".safetensors":
        return _judge_safetensors(path, file)
    if head.startswith(b"PK\x03\x04"):
        return _judge_zip(path)
    if re.match(rb"\x80[\x02-\x05]", head):
        return "a pickle of the old form; reading it runs code"
    if head.startswith(b"\x93NUMPY"):
        return _judge_array(file)
    return f"holds no weights ({what_it_is(path) or 'unknown content'})" if suffix in SUFFIXES else ""


def _judge_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({name.casefold() for name in names}) < len(names):
            return "two parts of one name; programs differ in which they read"
        if any(part.startswith("code/") or "/code/" in part or part.endswith("constants.pkl") for part in names):
            return "a TorchScript file, which is code"
        arrays = [name for name in names if name.endswith(".npy")]
        for name in arrays:
            with archive.open(name) as member:
                if why := _judge_array(member):
                    return f"{name}: {why}"
        pickles = [name for name in names if name.endswith(".pkl")]
        if not pickles and not arrays:
            return "an archive that holds neither weights nor arrays"
        for name in pickles:
            if archive.getinfo(name).file_size > _MOST_PICKLE:
                return f"{name}: too large to judge"
            if why := next(pickle_faults(archive.read(name)), ""):
                return f"{name}: {why}"
    return ""


def pickle_faults(data: bytes) -> Iterator[str]:
    """What a pickle would do besides creating tensors and containers; it is disassembled, not loaded."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
                yield f"the pickle calls {str(argument).replace(' ', '.')}"
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                yield f"the pickle holds the instruction {opcode.name}, which torch does not write"
    except Exception as error:  # genops raises many kinds on damaged pickles
        yield f"the pickle is damaged: {error}"


def _judge_array(file: IO[bytes]) -> str:
    magic = file.read(8)
    length = int.from_bytes(file.read(2 if magic[6:7] == b"\x01" else 4), "little")
    try:
        description = ast.literal_eval(file.read(min(length, 2**16)).decode("latin-1"))["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        return f"the header of the array is damaged: {error}"
    return "an array of objects is a pickle; reading it runs code" if "O" in json.dumps(description) else ""


def _judge_safetensors(path: Path, file: IO[bytes]) -> str:
    length = int.from_bytes(file.read(8), "little")
    size = path.stat().st_size
    if not 2 <= length <= min(size - 8, 100_000_000):
        return f"no safetensors file ({what_it_is(path) or 'cut short, or of another kind'})"
    header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        return f"holds {size} bytes, its header says {8 + length + max(ends, default=0)}"
    return ""


def judge_digests(root: Path, files: list[str]) -> list[Finding]:
    """Judge the lists of a bundle, and weights files against them or the digests beside them.

    Args:
        root: folder of the bundle.
        files: existing weights files, as paths inside the bundle.
    """
    findings: list[Finding] = []
    listed: dict[str, str] = {}
    for name in LISTS:
        if (root / name).is_file():
            try:
                entries = read_content(root / name)["large_files"]
                for index, entry in enumerate(entries):
                    findings += _judge_listed(name, f"large_files::{index}", entry, listed)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                findings.append(Finding(name, "large_files", type(error).__name__, f"is no list of files: {error}"))
    for path in files:
        if path not in listed:
            findings += _judge_beside(root, path)
        elif listed[path] and (digest := sha256(root / path)) != listed[path]:
            why = f"is not the file that large_files lists, whose sha256 is {listed[path]}"
            findings.append(Finding(path, "sha256", digest, why))
    return findings


def _judge_beside(root: Path, path: str) -> Iterator[Finding]:
    try:
        if not check_digest(root / path):
            why = f"no sha256 in large_files.yml or {digest_file(Path(path)).name}; where it is from is unknown"
            yield Finding(path, "", "no digest", why)
    except WrongDigestError as error:
        yield Finding(path, "sha256", sha256(root / path), f"is not the file of its digest: {error}")


def _judge_listed(file: str, key: str, entry: Any, listed: dict[str, str]) -> Iterator[Finding]:
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
    # a wrong entry has been reported; the file needs no second finding
    listed[str(PurePosixPath(path))] = value.lower() if known else ""
