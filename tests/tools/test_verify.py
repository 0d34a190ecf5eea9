import hashlib
import json
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mim_tools.verify import Finding, archives, expressions, judge_bundle, targets, weights
from mim_tools.verify.__main__ import main
from tests.logging_file import LOGGING

BUNDLES = sorted(path.parent.parent for path in Path(__file__).parents[2].glob("bundles/*/configs/metadata.json"))
GOOD = {
    "imports": ["$import torch", "$import numpy as np", "$import monai"],
    "bundle_root": {"_target_": "mim_components.run.bundle_root"},
    "dataset_dir": "/data/scans",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "size": [96, 96, 96],
    "network": {"_target_": "UNet", "channels": "$[2 * side for side in @size] + [len(@size)]"},
    "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()"},
    "copy": "%network",
    "load": {"_target_": "monai.transforms.LoadImaged", "keys": "image", "reader": ["NibabelReader", "itkreader"]},
    "folder": "$str(@bundle_root) + '/models'",
    "run": ["$@trainer.run()"],
}


class RunsCode:
    """What an attacker pickles: reading it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    write(root, "configs/train.json", json.dumps(GOOD))
    write(root, "configs/metadata.json", json.dumps({"schema": "https://x.org/a.json", "description": "a/../b"}))
    return root


def write(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def with_config(bundle: Path, **entries: Any) -> list[Finding]:
    write(bundle, "configs/train.json", json.dumps(GOOD | entries))
    return judge_bundle(bundle)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_good_bundle_is_clean(bundle: Path) -> None:
    assert judge_bundle(bundle) == []


@pytest.mark.parametrize("source", BUNDLES, ids=lambda path: path.name)
def test_our_bundles_are_clean(source: Path, tmp_path: Path) -> None:
    for part in ("configs", "docs", "LICENSE"):
        copy: Callable[..., Any] = shutil.copytree if (source / part).is_dir() else shutil.copy
        copy(source / part, tmp_path / part)
    assert judge_bundle(tmp_path) == []


def test_all_bundles_are_tested() -> None:
    assert len(BUNDLES) == 14


def test_code_in_an_expression_is_refused_and_not_run(bundle: Path, tmp_path: Path) -> None:  # F1
    found = only(with_config(bundle, x=f"$__import__('os').mkdir('{tmp_path / 'ran'}')"))
    assert (found.file, found.key) == ("configs/train.json", "x")
    assert "__import__('os').mkdir" in found.why
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "expression",
    [
        "$__import__('os')",
        "$().__class__.__base__.__subclasses__()",
        "$@network.__init__.__globals__['os']",
        "$@network._modules",
        "$eval('1')",
        "$open('/etc/passwd').read()",
        "$getattr(@network, 'x')",
        "$compile('1', '', 'eval')",
        "$(lambda: __import__('os'))()",
        "$[each for each in (lambda: 0,)]",
        "$@network",  # accepted, see below
        "$torch.load('x.pt')",
        "$torch.hub.load('a', 'b')",
        "$torch.serialization.os.system('x')",
        "$torch.device.__base__",
        "$torch",
        "$monai.utils.optional_import('os')[0].system('x')",
        "$monai.bundle.run()",
        "$np.load('x.npy', allow_pickle=True)",
        "$(torch).load('x')",
        "$'{0.__class__}'.format(@network)",
        "$f'{@network}'",
        "$(os := @network)",
        "$[torch.x for torch in [@network]]",
        "$[len('x') for len in [@network.f]]",
        "$@folder.path.write_text('x')",
        "$@folder.path.unlink",
        "$@network('x')",
        "$@network.apply('x')",
        "$'@x'",
        "$'@x', eval('1') #'",
        "$import os",
        "$import os, torch",
        "$import torch; import os",
        "$import os as torch",
        "$import torch as len",
        "$from os import system",
        "$from monai.utils.misc import subprocess",
        "$#x\nimport os",
        "$exec('import os')",
        "$＿＿import＿＿('os')",
        "$breakpoint()",
        "$vars()",
        "$__local_refs",
        "$print(1)",
        "$1 +",
        "$" + "(" * 500 + ")" * 500,
        "$" + "1 + " * 1000 + "1",
    ],
)
def test_expressions(expression: str) -> None:
    assert bool(expressions.why_not(expression)) == (expression != "$@network")


@pytest.mark.parametrize(
    "expression",
    [
        "$@a::b#0['x'][-1].size",
        "$1 if @a is None else max(@a, 1) / 2",
        "$not @a and @b or len(@c) > 1",
        "$(side * 2 for side in range(3))",
        "$@network.to(@device)",
        "$monai.handlers.from_engine(['pred', 'label'])",
        "$torch.float32",
        "$np.inf",
        "$  2 ** 3",
        "$import mim_components",
        "$dict(a=@b)",
        "${'a': {1, 2}}",
    ],
)
def test_harmless_expressions(expression: str) -> None:
    assert expressions.why_not(expression) == ""


def test_no_accepted_expression_can_reach_the_builtins() -> None:
    dangerous = {"eval", "exec", "open", "compile", "getattr", "setattr", "vars", "globals", "locals", "input", "type"}
    assert not dangerous & expressions.BUILTINS
    assert not any("." in name for name in expressions.BUILTINS)
    assert not {"format", "system", "write_text", "unlink", "open"} & expressions.METHODS


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "eval",
        "print",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.nn.functional.os.system",
        "torch.nn.init.normal_",
        "monai.bundle.download",
        "monai.bundle.scripts.run",
        "monai.bundle.load",
        "run",  # bare: monai.bundle.scripts.run
        "download_url",
        "optional_import",
        "monai.data.utils.os.system",
        "monai.data.utils.pickle.loads",
        "monai.data.dataset.torch.load",
        "monai.transforms.io.array.locate",
        "monai.transforms.Compose.__call__",
        "monai.transforms.Compose.flatten",
        "monai.handlers.MLFlowHandler",
        "monai.losses.PerceptualLoss",
        "ignite.handlers.WandBLogger",
        "monai.apps.download_url",
        "mim_components.utils.files.write_text_safely",
        "mim_components.utils.tensor_files.save_to",
        "mim_components.run.folder.uuid.uuid4",
        "mim_components.no_such_thing",
        "scripts.evil",
        "@name",
        "$print",
        "%name",
        "monai.transforms.",
        "",
        7,
        {"_target_": "os.system"},
    ],
)
def test_targets(bundle: Path, target: Any) -> None:  # F2
    assert only(with_config(bundle, x={"_target_": target})).key == "x::_target_"


@pytest.mark.parametrize(
    "target",
    ["Compose", "monai.data.list_data_collate", "monai.utils.set_determinism", "torch.ne", "torch.optim.SGD",
     "torch.utils.data.DistributedSampler", "ignite.handlers.ProgressBar", "mim_components.losses.MiMLoss"],
)  # fmt: skip
def test_accepted_targets(target: str) -> None:
    assert targets.why_not(target) == ""


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("train#x#_target_", "os.system", "train::x::_target_"),
        ("+handlers", [{"_target_": "os.system"}], "+handlers::0::_target_"),
        ("x", {"_target_": "LoadImage", "reader": "subprocess.Popen"}, "imports and calls"),
        ("load#reader", ["NibabelReader", "os.abort"], "imports and calls"),
        ("x", {"_target_": "SaveImage", "writer": "@name"}, "imports and calls"),
        ("x", {"_target_": "SlidingWindowInferer", "merger_cls": "os.system"}, "imports and calls"),
        ("x", {"_target_": "NumpyReader", "allow_pickle": True}, "pickles"),
        ("x", {"_target_": "PersistentDataset", "weights_only": False}, "pickles"),
        ("x", {"_target_": "resnet18", "pretrained": True}, "downloads"),
        ("x", {"_target_": "UNet", "_mode_": "debug"}, "debugger"),
        ("x", "%other.json::y", "from a file"),
        ("x", "%../../home/x.yaml#y", "from a file"),
        ("tracking_uri", "http://evil.example/", "address"),
        ("tracking_uri", "@_meta_::schema", "for people"),
        ("output_dir", "/home/you/.config", "absolute path"),
        ("output_dir", "~/.ssh", "absolute path"),
        ("output_dir", "C:\\Windows", "absolute path"),
        ("output_dir", "a/../../b", "leads out"),
        ("output_dir", "$'/etc/' + 'x'", "absolute path"),
        ("output_dir", "$@bundle_root + '/../../x'", "leads out"),
        ("a') or eval('1') or ('", {"x": "$@#y"}, "part of an expression"),
        ("a b", {"x": "$@#y"}, "relative reference"),
    ],
)
def test_places_in_a_config(bundle: Path, key: str, value: Any, what: str) -> None:
    findings = with_config(bundle, **{key: value})
    assert any(what in f"{found.key} {found.why}" for found in findings), findings


def test_values_of_duplicate_keys_are_all_judged(bundle: Path) -> None:
    write(bundle, "configs/train.json", '{"x": "$exec(1)", "y": 1, "x": "$1"}')
    assert [(found.key, found.what) for found in judge_bundle(bundle)] == [("x", "duplicate key"), ("x", "$exec(1)")]


def test_metadata_is_a_config_too(bundle: Path) -> None:
    write(bundle, "configs/metadata.json", json.dumps({"dataset": {"intensity": {"_target_": "os.system"}}}))
    assert only(judge_bundle(bundle)).key == "dataset::intensity::_target_"


@pytest.mark.parametrize(
    "override",
    [
        "x=$exec('1')",
        "--train::x::_target_=os.system",
        'x={"_target_": "eval"}',
        "x='$exec(1)'",
        "x=%a.json",
        "config_file=/tmp/x.json",
        "logging_file=x.conf",
    ],
)
def test_overrides_are_judged(bundle: Path, override: str) -> None:  # F3
    assert only(judge_bundle(bundle, [override])).file == "command line"


def test_paths_and_numbers_of_the_user_are_fine(bundle: Path) -> None:
    wanted = [
        "output_dir=/scratch/me",
        "tracking_uri=http://localhost:5000",
        "lr=1e-4",
        "size=[96,96,96]",
        "x=$len(@y)",
    ]
    assert judge_bundle(bundle, wanted) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x: !!python/object/apply:os.system ['id']", "python"),  # F4
        ("x: !!python/name:os.system", "python"),
        ("x: !local 1", "tag"),
        ("a: &a [1]\nb: [*a, *a]", "alias"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: [", "cannot be read"),
        ("x:\n  _target_: os.system", "accepted components"),
        ("x: $exec('1')", "calls exec"),
    ],
)
def test_yaml(bundle: Path, text: str, what: str) -> None:
    write(bundle, "configs/x.yml", text)
    found = only(judge_bundle(bundle))
    assert found.file == "configs/x.yml"
    assert what in found.why


def test_plain_yaml_is_clean(bundle: Path) -> None:
    write(bundle, "configs/x.yaml", "size: [1, 2]\nnetwork: {_target_: UNet}\n1: 2")
    assert judge_bundle(bundle) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100000, b'{"a": "\xff"}'])
def test_damaged_config_is_named(bundle: Path, content: bytes) -> None:
    write(bundle, "configs/x.json", content)
    assert only(judge_bundle(bundle)).why.startswith("cannot be read")


@pytest.mark.parametrize(
    ("cls", "args", "clean"),
    [
        ("StreamHandler", "(sys.stderr,)", True),
        ("logging.FileHandler", "('run.log', 'a')", True),
        ("handlers.RotatingFileHandler", "('run.log',)", True),
        ("__import__('os').system", "('id',)", False),  # F5
        ("eval", "('1',)", False),
        ("handlers.SocketHandler", "('evil.example', 80)", False),
        ("%(x)s", "()", False),
        ("StreamHandler", "(__import__('os').system('id'),)", False),
        ("StreamHandler", "(os.environ,)", False),
        ("FileHandler", "('/etc/cron.d/x',)", False),
        ("FileHandler", "('../x',)", False),
        ("StreamHandler", "(", False),
    ],
)
def test_logging(bundle: Path, cls: str, args: str, clean: bool) -> None:
    write(bundle, "configs/logging.conf", LOGGING.format(cls=cls, args=args))
    assert (judge_bundle(bundle) == []) == clean


def test_defaults_of_logging_are_judged(bundle: Path) -> None:
    write(bundle, "configs/logging.conf", "[DEFAULT]\nclass=eval\n[handler_a]\nlevel=INFO\n")
    assert only(judge_bundle(bundle)).key == "handler_a::class"
    write(bundle, "configs/logging.conf", "no section")
    assert "cannot be read" in only(judge_bundle(bundle)).why


def zipped(bundle: Path, extra: Callable[[zipfile.ZipFile], object] | None = None) -> Path:
    path = bundle.parent / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(bundle.rglob("*")):
            archive.write(each, each.relative_to(bundle.parent))
        if extra is not None:
            extra(archive)
    return path


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("bundle/models")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc")


def test_archive_is_judged_like_a_folder(bundle: Path) -> None:
    assert judge_bundle(zipped(bundle)) == []
    write(bundle, "configs/x.json", '{"x": "$exec(1)"}')
    assert only(judge_bundle(zipped(bundle))).file == "configs/x.json"


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (lambda archive: archive.writestr("../evil.py", "x"), "leads out"),  # F6
        (lambda archive: archive.writestr("/tmp/evil.py", "x"), "absolute"),
        (lambda archive: archive.writestr("C:/evil.py", "x"), "absolute"),
        (lambda archive: archive.writestr("bundle\\..\\evil.py", "x"), "absolute"),
        (link, "link"),
        (lambda archive: archive.writestr("bundle/CONFIGS/train.json", "{}"), "two members"),
        (lambda archive: archive.writestr("bundle/zeros", bytes(2**25)), "unpacks from"),
    ],
    ids=["dots", "absolute", "drive", "backslash", "link", "twice", "bomb"],
)
def test_archive_that_does_more_than_unpack(bundle: Path, extra: Callable[[zipfile.ZipFile], object], why: str) -> None:
    before = sorted(bundle.parent.rglob("*"))
    findings = judge_bundle(zipped(bundle, extra))
    assert any(why in f"{found.what} {found.why}" for found in findings), findings
    assert sorted(bundle.parent.rglob("*")) == sorted([*before, bundle.parent / "bundle.zip"])


def test_archive_that_cannot_be_judged(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(bundle)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # in the list at the end: encrypted
    path.write_bytes(content)
    assert only(judge_bundle(path)).why == "is encrypted and cannot be judged"
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    monkeypatch.setattr(archives, "MOST_BYTES", 10)
    monkeypatch.setattr(archives, "_SMALL", 10)
    monkeypatch.setattr(archives, "MOST_RATIO", 0)
    found = [found.what for found in judge_bundle(zipped(bundle)) if not found.key]
    assert found[0] == "3 members" and len(found) == 3


def test_archive_for_which_there_is_no_room(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="unpacks to .* bytes, 10 are free"):
        judge_bundle(zipped(bundle))


def listed(bundle: Path, **change: Any) -> list[Finding]:
    path = write(bundle, "models/model.safetensors", b"")
    save_file({"a": torch.zeros(2)}, path)
    entry = {
        "path": "models/model.safetensors",
        "url": "https://example.org/model.safetensors",
        "hash_val": hashlib.sha256(path.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    entry = {name: value for name, value in (entry | change).items() if value is not None}
    write(bundle, "large_files.yml", json.dumps({"large_files": [entry]}))  # JSON is YAML
    return judge_bundle(bundle)


def test_listed_weights_are_clean(bundle: Path) -> None:
    assert listed(bundle) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"path": "../evil.pt"}, "leads out of the bundle"),  # F8
        ({"path": "/etc/passwd"}, "leads out of the bundle"),
        ({"url": "file:///etc/passwd"}, "no plain https|not a plain https"),
        ({"url": "http://example.org/x"}, "not a plain https"),
        ({"url": "https://you:secret@example.org/x"}, "not a plain https"),
        ({"hash_val": None, "hash_type": None}, "no sha256"),
        ({"hash_type": "md5", "hash_val": "0" * 32}, "no sha256"),
        ({"hash_val": "0" * 64}, "is not the file"),
    ],
)
def test_large_files(bundle: Path, change: dict[str, Any], why: str) -> None:
    findings = listed(bundle, **change)
    assert any(part in found.why for found in findings for part in why.split("|")), findings


def test_list_of_another_form_is_named(bundle: Path) -> None:
    write(bundle, "large_files.json", '{"large_files": [1]}')
    assert "no list of files" in only(judge_bundle(bundle)).why


def test_weights_without_digest_are_named(bundle: Path) -> None:
    save_file({"a": torch.zeros(2)}, bundle / "model.safetensors")
    assert "no sha256 in large_files.yml" in only(judge_bundle(bundle)).why


def test_weights_of_torch_are_accepted(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)).bfloat16()
    torch.save({"network": network.state_dict(), "step": 3, "p": network[0].weight}, tmp_path / "a.pt")
    assert weights.why_not(tmp_path / "a.pt") == ""
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert weights.why_not(tmp_path / "a.npz") == ""


def make_bad(kind: str, path: Path) -> Path:
    payload = RunsCode(path.parent / "ran")
    if kind == "zip":
        torch.save({"a": payload}, path)
    elif kind == "old form":
        torch.save({"a": payload}, path, _use_new_zipfile_serialization=False)
    elif kind == "protocol 4":
        torch.save({"a": payload}, path, pickle_protocol=4)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "object array":
        path = path.with_suffix(".npy")
        np.save(path, np.array([payload], dtype=object), allow_pickle=True)
    elif kind == "object arrays":
        path = path.with_suffix(".npz")
        np.savez(path, a=np.array([payload], dtype=object))
    elif kind == "script":
        module = torch.jit.trace(torch.nn.Identity(), torch.zeros(1))
        module.save(str(path))
    elif kind == "HTML":
        path.write_text("<html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif kind == "two pickles":
        torch.save({"a": torch.zeros(1)}, path)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(f"{path.stem}/data.pkl", b".")
    elif kind == "damaged":
        torch.save({"a": torch.zeros(1)}, path)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({"a": torch.zeros(2)}, path)
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "no safetensors":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"<html>")
    else:
        path = path.with_suffix(f".{kind}")
        path.write_bytes(b"anything")
    return path


BAD = {
    "zip": "calls posix.mkdir",
    "protocol 4": "STACK_GLOBAL",
    "old form": "old form",
    "pickle": "old form",
    "object array": "array of objects",
    "object arrays": "array of objects",
    "script": "TorchScript",
    "HTML": "an HTML page",
    "pointer": "git lfs pull",
    "two pickles": "two parts of one name",
    "damaged": "cannot be read",
    "safetensors": "its header says",
    "no safetensors": "an HTML page",
    "pkl": "a pickle",
    "onnx": "cannot be judged",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_pickles_and_their_like_are_named_and_not_loaded(bundle: Path, kind: str) -> None:  # B5, B6, F9
    path = make_bad(kind, bundle / "model.pt")
    findings = [found for found in judge_bundle(bundle) if found.what != "no digest"]
    assert only(findings).file == path.name
    assert BAD[kind] in only(findings).why
    assert not (bundle / "ran").exists()


def test_a_pickle_is_known_under_any_name(bundle: Path) -> None:
    write(bundle, "docs/notes.txt", pickle.dumps(RunsCode(bundle / "ran")))
    assert any("old form" in found.why for found in judge_bundle(bundle))


@pytest.mark.parametrize("name", ["scripts/evil.py", "run.sh", "a.so", "configs/x.ipynb", "startup.pth"])
def test_programs_are_named(bundle: Path, name: str) -> None:
    write(bundle, name, "print(1)")
    assert any(found.file == name and found.what == "a program" for found in judge_bundle(bundle))


def test_archives_inside_are_named(bundle: Path) -> None:
    write(bundle, "more.tar", "x")
    assert only(judge_bundle(bundle)).what == "an archive"


def test_links(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "same.json").symlink_to("train.json")
    assert judge_bundle(bundle) == []
    (bundle / "models").symlink_to(tmp_path)
    assert only(judge_bundle(bundle)).why == "leads out of the bundle"
    (bundle / "models").unlink()
    (bundle / "loop").symlink_to("loop")
    os.mkfifo(bundle / "pipe")
    assert [found.file for found in judge_bundle(bundle)] == ["loop", "pipe"]


def test_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle)]) == 0
    assert capsys.readouterr().out == f"{bundle}: nothing found\n"
    assert main([str(bundle), "--override", "x=$exec(1)", "y=\x1b[2J$", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"file": "command line", "key": "x", "what": "$exec(1)", "why": "calls exec"}
    ]
    write(bundle, "configs/x.json", json.dumps({"a": "$\x1b[2J"}))
    assert main([str(bundle)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "1 findings" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["missing"], "no such bundle"), (["."], "no folder configs/"), (["bundle", "--override", "x"], "key=value"),
     (["text.zip"], "not a readable zip file")],
)  # fmt: skip
def test_wrong_usage(
    bundle: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = bundle.parent / "other"
    other.mkdir()
    write(bundle.parent, "text.zip", "x")
    monkeypatch.chdir(bundle.parent)
    first = str(other) if arguments == ["."] else arguments[0]
    assert main([first, *arguments[1:]]) == 2
    assert message in capsys.readouterr().err


def test_not_from_inside_the_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bundle / "configs")
    assert main([".."]) == 2
    assert "outside of the bundle" in capsys.readouterr().err
