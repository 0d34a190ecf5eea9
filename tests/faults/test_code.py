"""Code in files that should only be read: it is refused, and never run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mim_tools.verify.__main__ import main
from tests.faults.runs import PRETRAIN, Run, environment_of_runs, losses, start
from tests.logging_file import LOGGING

pytestmark = pytest.mark.slow

Data = dict[str, str]
GOOD = {
    "bundle_root": {"_target_": "mim_components.run.bundle_root"},
    "network": {"_target_": "UNet", "channels": [4, 8]},
    "run": ["$@trainer.run()"],
}


class Folder:
    """A bundle, and the folder that code in it would create."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran = root / "bundle", root / "ran"
        self.write("configs/train.json", json.dumps(GOOD))
        self.write("configs/metadata.json", json.dumps({"name": "a bundle"}))

    @property
    def code(self) -> str:
        """An expression that creates the folder."""
        return f"__import__('os').mkdir('{self.ran}')"

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the bundle."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def add(self, **entries: Any) -> None:
        """Add entries to the configuration."""
        self.write("configs/train.json", json.dumps(GOOD | entries))


class RunsCode:
    """An attacker's pickle: loading it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bundle(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def expression(bundle: Folder) -> None:
    bundle.add(x=f"${bundle.code}")


def hidden_expression(bundle: Folder) -> None:
    bundle.add(x="$().__class__.__base__.__subclasses__()[0]")


def in_metadata(bundle: Folder) -> None:
    bundle.write("configs/metadata.json", json.dumps({"dataset": {"spacing": f"${bundle.code}"}}))


def key_twice(bundle: Folder) -> None:
    bundle.write("configs/train.json", '{"x": "$' + bundle.code.replace('"', "'") + '", "x": 1}')


def target(name: str) -> Callable[[Folder], None]:
    return lambda bundle: bundle.add(x={"_target_": name, "command": f"mkdir {bundle.ran}", "args": str(bundle.ran)})


def reader(bundle: Folder) -> None:
    bundle.add(x={"_target_": "LoadImage", "reader": "subprocess.Popen"})


def yaml(text: str) -> Callable[[Folder], object]:
    return lambda bundle: bundle.write("configs/x.yaml", text.format(ran=bundle.ran))


def logging_conf(cls: str, args: str) -> Callable[[Folder], object]:
    return lambda bundle: bundle.write(
        "configs/logging.conf", LOGGING.format(cls=cls.format(code=bundle.code), args=args.format(code=bundle.code))
    )


def object_array(bundle: Folder) -> None:
    np.save(bundle.root / "x.npy", np.array([RunsCode(bundle.ran)], dtype=object), allow_pickle=True)


def weights(bundle: Folder) -> None:
    torch.save({"network": RunsCode(bundle.ran)}, bundle.root / "model.pt")


def bare_pickle(bundle: Folder) -> None:
    bundle.write("docs/notes.txt", pickle.dumps(RunsCode(bundle.ran)))


def link(bundle: Folder) -> None:
    (bundle.root / "models").symlink_to("/etc")


# id, fault, change to the bundle, expected finding
BUNDLES: list[tuple[str, str, Callable[[Folder], object], str]] = [
    ("F1", "code in an expression", expression, "__import__"),
    ("F1b", "code by way of special attributes", hidden_expression, "__class__"),
    ("F1c", "code in the metadata", in_metadata, "__import__"),
    ("F1d", "code in a key that stands twice", key_twice, "duplicate key"),
    ("F2", "os.system as a component", target("os.system"), "x::_target_"),
    ("F2b", "subprocess.run as a component", target("subprocess.run"), "x::_target_"),
    ("F2c", "a library's way to os.system", target("monai.data.utils.os.system"), "x::_target_"),
    ("F2d", "a class as an argument that is imported", reader, "imports and calls"),
    ("F4", "YAML tag python/object/apply", yaml("x: !!python/object/apply:os.mkdir ['{ran}']"), "python"),
    ("F4b", "YAML tag python/name", yaml("x: !!python/name:os.system"), "python"),
    ("F5", "code under class in logging.conf", logging_conf("{code}", "()"), "handler_a::class"),
    ("F5b", "code under args in logging.conf", logging_conf("StreamHandler", "({code},)"), "handler_a::args"),
    ("F9b", "object array in the bundle", object_array, "array of objects"),
    ("F10", "pickle in the weights", weights, "calls posix.mkdir"),
    ("F10b", "pickle under another name", bare_pickle, "docs/notes.txt"),
    ("F11", "a program", lambda bundle: bundle.write("scripts/evil.py", "import os"), "a program"),
    ("F11b", "link out of the bundle", link, "leads out of the bundle"),
]


def rows(table: list[Any], injection: str) -> list[Any]:
    return [
        pytest.param(
            *rest,
            id=id_,
            marks=pytest.mark.fault(
                id_, fault=fault, injection=injection, expected=f"exit code 1, not run, place and cause: {rest[-1]}"
            ),
        )
        for id_, fault, *rest in table
    ]


def judge(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Findings of the command, of which there must be at least one."""
    assert main(list(words)) == 1
    return capsys.readouterr().out


@pytest.mark.parametrize(("injected", "message"), rows(BUNDLES, "in a bundle given to mim_tools.verify"))
def test_bundle(
    injected: Callable[[Folder], object], message: str, bundle: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle.root)]) == 0
    injected(bundle)
    assert message in judge(capsys, str(bundle.root))
    assert not bundle.ran.exists()


@pytest.mark.fault("F1e", fault="code in an expression, by the command", injection="python -m mim_tools.verify",
                   expected="exit code 1, not run, file and key named")  # fmt: skip
def test_command(bundle: Folder) -> None:
    expression(bundle)
    command = [sys.executable, "-m", "mim_tools.verify", str(bundle.root)]
    place, environment = bundle.ran.parent, environment_of_runs()
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr
    assert "configs/train.json" in done.stdout and not bundle.ran.exists()


# on the command line


@pytest.mark.fault("F3", fault="`$` in an override", injection="--override x=$...",
                   expected="exit code 1, not run, the option named")  # fmt: skip
def test_override(bundle: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "command line" in judge(capsys, str(bundle.root), "--override", f"x=${bundle.code}")
    assert not bundle.ran.exists()


@pytest.mark.fault("F3b", fault="`$` in an option that a run does not have", injection="monai.bundle run --x $...",
                   expected="exit code 1, not run, the option named")  # fmt: skip
def test_option_of_a_run(scans: Data, tmp_path: Path) -> None:
    run = refuse(scans, tmp_path, x=f"$__import__('os').mkdir('{tmp_path / 'ran'}')")
    assert "unknown option --x" in run.error
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("F4c", fault="YAML tag in a configuration that is run", injection="--config_file x.yaml",
                   expected="exit code 1, not run")  # fmt: skip
def test_yaml_of_a_run(scans: Data, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\n")
    run = start(PRETRAIN, tmp_path / "run", "--config_file", str(path), **scans)
    assert run.wait() == 1 and "python/object/apply" in run.text
    assert not (tmp_path / "ran").exists()


def refuse(data: Data, folder: Path, **options: Any) -> Run:
    """A pre-training that must stop before its first step."""
    run = start(PRETRAIN, folder / "run", **{**data, **options})
    assert run.wait() == 1, run.text[-3000:]
    assert losses(run.output) == []
    return run


@pytest.mark.fault("F9", fault="object array in a list of scans", injection="np.save of a pickle, listed as a scan",
                   expected="exit code 1, not run, the file named")  # fmt: skip
def test_object_array_in_a_list(scans: Data, tmp_path: Path) -> None:
    for name in ("x.npy", "y.nii.gz"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.array([RunsCode(tmp_path / "ran")], dtype=object), allow_pickle=True)
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "x.npy"}, {"image": "y.nii.gz"}]}))
    run = refuse(scans, tmp_path, dataset_dir=tmp_path, datalist=tmp_path / "list.json", cache_dir=tmp_path / "cache")
    assert f"{tmp_path / 'x.npy'}: not a volume" in run.error
    assert f"{tmp_path / 'y.nii.gz'}: not a NIfTI file" in run.error
    assert not (tmp_path / "ran").exists()


# archives


def dots(archive: zipfile.ZipFile) -> None:
    archive.writestr("../evil.txt", "x")


def absolute(archive: zipfile.ZipFile) -> None:
    archive.writestr("/tmp/mim_evil.txt", "x")


def symlink(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("bundle/models")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc")


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("bundle/zeros", bytes(2**25))


def two_names(archive: zipfile.ZipFile) -> None:
    archive.writestr("bundle/CONFIGS/train.json", "{}")


ARCHIVES = [
    ("F6", "zip with `..`", dots, "leads out"),
    ("F6b", "zip with an absolute path", absolute, "absolute"),
    ("F6c", "zip with a symlink", symlink, "link"),
    ("F6d", "zip bomb", bomb, "unpacks from"),
    ("F6e", "zip with two members that unpack to one file", two_names, "two members"),
]


@pytest.mark.parametrize(("extra", "message"), rows(ARCHIVES, "zipfile"))
def test_archive(
    extra: Callable[[zipfile.ZipFile], None], message: str, bundle: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle.root.parent / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(bundle.root.rglob("*")):
            archive.write(each, each.relative_to(bundle.root.parent))
        extra(archive)
    before = sorted(bundle.root.parent.rglob("*"))
    assert message in judge(capsys, str(path))
    assert sorted(bundle.root.parent.rglob("*")) == before
    assert not Path("/tmp/mim_evil.txt").exists()


# weights for download

FILES: list[tuple[str, str, dict[str, str | None], str]] = [
    ("F8", "path with `../`", {"path": "../evil.pt"}, "leads out of the bundle"),
    ("F8b", "file:// address", {"url": "file:///etc/passwd"}, "not a plain https"),
    ("F8c", "no hash", {"hash_val": None, "hash_type": None}, "no sha256"),
    ("F8d", "wrong hash", {"hash_val": "0" * 64}, "is not the file"),
    ("F8e", "http address", {"url": "http://example.org/x"}, "not a plain https"),
    ("F8f", "md5", {"hash_type": "md5", "hash_val": "0" * 32}, "no sha256"),
    ("F8g", "absolute path", {"path": "/etc/passwd"}, "leads out of the bundle"),
]


@pytest.mark.parametrize(("change", "message"), rows(FILES, "large_files.yml"))
def test_large_files(
    change: dict[str, str | None], message: str, bundle: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle.write("models/model.safetensors", b"")
    save_file({"a": torch.zeros(2)}, path)
    entry: dict[str, str | None] = {
        "path": "models/model.safetensors",
        "url": "https://example.org/model.safetensors",
        "hash_val": hashlib.sha256(path.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    bundle.write("large_files.yml", json.dumps({"large_files": [entry]}))
    assert main([str(bundle.root)]) == 0
    changed = {name: value for name, value in (entry | change).items() if value is not None}
    bundle.write("large_files.yml", json.dumps({"large_files": [changed]}))
    assert message in judge(capsys, str(bundle.root))
