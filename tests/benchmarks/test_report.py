"""The benchmarks' report: order of repetitions, figures of a table, and nothing about the machine's folders."""

import json
import platform

import pytest

from benchmarks import report


def test_cases_run_in_turn_and_warm_up_does_not_count():
    calls = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = report.measure(cases, repetitions=2, warmup=1, before=lambda: calls.append("-"))
    assert "".join(calls) == "-a-b" * 3
    assert [len(timings[name].seconds) for name in cases] == [2, 2]


def test_numbers_of_a_timing():
    timing = report.Timing((0.003, 0.001, 0.010))
    assert timing.milliseconds() == pytest.approx({"median ms": 3.0, "min ms": 1.0, "max ms": 10.0})


def test_table():
    rows = [{"case": "a", "ms": 1234.5, "n": 5}, {"case": "b", "ms": 0.01234, "n": None}]
    assert report.markdown_table(rows).splitlines() == [
        "| case | ms | n |",
        "| --- | ---: | ---: |",
        "| a | 1,234 | 5 |",
        "| b | 0.0123 |  |",
    ]


def test_file_says_how_it_was_made_and_not_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--data", f"{tmp_path}/scans", "--repetitions", "3"])
    rows = [{"case": "a", "ms": 1.5}]
    report.report(
        {"Table": rows}, tmp_path / "out" / "a.json", packages=["no-such-package"], settings={"repetitions": 3}
    )
    text = (tmp_path / "out" / "a.json").read_text()
    content = json.loads(text)
    assert content["tables"] == {"Table": rows} and content["settings"] == {"repetitions": 3}
    assert content["command"].endswith(" --data scans --repetitions 3")
    assert content["environment"]["versions"]["no-such-package"] is None
    assert str(tmp_path) not in text and platform.node() not in text
    assert "| a | 1.50 |" in capsys.readouterr().out


def test_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report.commit() == "unknown"
