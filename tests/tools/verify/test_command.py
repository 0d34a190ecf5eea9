from __future__ import annotations

import json
from pathlib import Path

import pytest

from mim_tools.verify.__main__ import main
from tests.tools.verify.good import write


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
    assert "1 finding:" in out


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
    assert "outside the bundle" in capsys.readouterr().err
