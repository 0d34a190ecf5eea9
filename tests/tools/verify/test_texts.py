from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mim_tools.verify import judge_bundle
from tests.tools.verify.good import only, with_config, write

# entries that expressions refer to
ENTRIES = {
    "empty": "",
    "dot": ".",
    "plain": "models/a",
    "scheme": "https:",
    "number": 3,
    "sides": [1, 2],
    "words": ["a/b", "./"],
    "nested": {"word": "x/"},
    "other": "%nested",
    "again": "@plain",
    "made": "$str(@plain) + '/c'",
    "listed": "$['x/y']",
    "labels": {"_target_": "mim_components.labels.select_labels", "label_sets": {"/": {}}},
    "given": None,
}


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        # sums
        ("$'' + '/home/me/.ssh'", "absolute path"),
        ("$'.' + './' + '.' + './x'", "leads out"),
        ("$'https:' + '//evil.example/x'", "address"),
        ("$'ht' + 'tps://evil.example/x y'", "address"),
        ("$('.' if @number else 'a') + './x'", "leads out"),
        ("$(@given or '') + '/etc'", "absolute path"),
        ("$str('') + '/etc'", "absolute path"),
        ("$str(@empty) + '/etc'", "absolute path"),
        ("$@empty + '/etc'", "absolute path"),
        ("$@dot + './x'", "leads out"),
        ("$@scheme + '//evil.example'", "address"),
        ("$@dot + @dot", "leads out"),
        ("$@made + '/../../../x'", "leads out"),
        ("$@dataset_dir + '/x'", "absolute path"),
        ("$str(@bundle_root) + '/../x'", "leads out"),
        ("$str(@bundle_root) + '-x'", "something else than a path"),
        ("$'x' + @bundle_root", "something else than a path"),
        ("$@bundle_root + '/' + @given", "something else than a path"),
        ("$@bundle_root + '//x'", "something else than a path"),
        # what is not known
        ("$@labels.name + '/x'", "known only when it runs"),
        ("$@labels.name + @labels.origin", "known only when it runs"),
        ("$@labels + '/x'", "known only when it runs"),
        ("$@missing + '/x'", "known only when it runs"),
        ("$@words[0] + './x'", "known only when it runs"),
        ("$['.'][0] + './x'", "known only when it runs"),
        ("${'a': '.'}['a'] + './x'", "known only when it runs"),
        ("$max('.', '-') + './x'", "known only when it runs"),
        ("$[t + './x' for t in ['.']]", "known only when it runs"),
        # other operators
        ("$'.' * 2", "multiplies"),
        ("$@dot * 2", "multiplies"),
        ("$2 * @labels.name", "multiplies"),
        ("$@nested::word * 2", "multiplies"),
        ("$@other::word * 2", "multiplies"),
        ("$[2 * t for t in ['.']]", "multiplies"),
        ("$'%s%s' % ('.', './x')", "fills in"),
        ("$'%c' % 47", "fills in"),
        ("$@plain % 47", "fills in"),
        ("$@labels.path / 'x'", "joins"),
        ("$@labels.path / @plain", "joins"),
        # parts of texts
        ("$'a/b'[1]", "a part of"),
        ("$'a/b'[1:]", "a part of"),
        ("$str(@bundle_root)[0]", "a part of"),
        ("$@plain[6:]", "a part of"),
        ("$@nested::word[1]", "a part of"),
        ("$@other::word[1]", "a part of"),
        ("$@again[6]", "a part of"),
        ("$@listed[0][1]", "a part of"),
        ("$@words[0][1:]", "a part of"),
        ("$@words::0[1:]", "a part of"),
        ("$@words::7[1:]", "a part of"),
        ("$@labels.name[0]", "a part of"),
        ("$@::plain[6]", "a part of"),
        ("$[c for c in 'a/b']", "characters"),
        ("$[c for c in @plain]", "characters"),
        ("$[c for t in @words for c in t]", "characters"),
        ("$[a for a, b in @words]", "apart"),
        ("$[b for a, b in ['x/']]", "apart"),
        ("$list('a/b')[1]", "characters"),
        ("$min(@plain)", "characters"),
        ("$[list(t) for t in @words]", "characters"),
        ("$dict(@words)", "apart"),
        ("$dict(['./'])", "apart"),
    ],
)
def test_texts_that_are_put_together(bundle: Path, expression: str, why: str) -> None:
    findings = with_config(bundle, **ENTRIES, output_dir=expression)
    assert [found for found in findings if found.key == "output_dir" and why in found.why], findings


@pytest.mark.parametrize(
    "expression",
    [
        "$@bundle_root + '/cache'",
        "$str(@bundle_root) + '/evaluation/x'",
        "$@given + '/x'",
        "$@plain + '/x'",
        "$@again + '/x'",
        "$@made + '/x'",
        "$@plain + '_' + str(@number)",
        "$'fold_' + str(len(@sides))",
        "$@number + 1",
        "$2 * @number",
        "$@number % 2",
        "$@sides + [1]",
        "$@sides[0] if @sides else None",
        "$@sides[1:]",
        "$[2 * side for side in @sides]",
        "$max(@sides) / 2",
        "$@words[0]",
        "$[word for word in @words]",
        "$[i for i, word in enumerate(@words)]",
        "$dict(zip(@words, @sides))",
        "$@labels.name == 'a' or None",
        "$@nested['word']",
    ],
)
def test_texts_that_are_fine(bundle: Path, expression: str) -> None:
    assert with_config(bundle, **ENTRIES, output_dir=expression) == []


@pytest.mark.parametrize(
    ("entries", "key"),
    [
        ({"x": {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "$'https:' + '//e.example/x'"}},
         "x::pretrained_url"),
        ({"tracking_uri": "$'https:' + '//evil.example/x'"}, "tracking_uri"),
        ({"output_dir": "@dataset_dir"}, "output_dir"),
        ({"output_dir": "%dataset_dir"}, "output_dir"),
        ({"output_dir": "$str(@dataset_dir)"}, "output_dir"),
        ({"tracking_uri": " https://evil.example/x"}, "tracking_uri"),
        ({"tracking_uri": "https://evil.example/x y"}, "tracking_uri"),
        ({"tracking_uri": "file:/home/me"}, "tracking_uri"),
        ({"output_dir": "/home/me/my files"}, "output_dir"),
        ({"tracking_uri": "$@_meta_['schema']"}, "tracking_uri"),
        ({"facts": "%_meta_"}, "facts"),
    ],
)  # fmt: skip
def test_ways_around_the_rules_on_places(bundle: Path, entries: dict[str, Any], key: str) -> None:
    assert only(with_config(bundle, **entries)).key == key


def test_names_are_looked_up_in_all_files(bundle: Path) -> None:
    write(bundle, "configs/more.json", json.dumps({"output_dir": "$str(@folder_of_run) + '/x'"}))
    assert "known only when" in only(judge_bundle(bundle)).why
    assert with_config(bundle, folder_of_run="runs") == []
    write(bundle, "configs/third.json", json.dumps({"folder_of_run": ""}))
    assert "can become '/x'" in only(judge_bundle(bundle)).why


def test_references_in_a_circle(bundle: Path) -> None:
    write(bundle, "configs/more.json", json.dumps({"a": "@b", "b": "@a", "c": "$@d + '/x'", "d": "$@c + '/x'"}))
    assert {found.key for found in judge_bundle(bundle)} == {"c", "d"}
    doubled = {f"a{i}": f"$@a{i - 1} + @a{i - 1}" for i in range(1, 60)} | {"a0": "x" * 100}
    write(bundle, "configs/more.json", json.dumps(doubled))
    assert "known only when" in judge_bundle(bundle)[0].why
    write(bundle, "configs/more.json", json.dumps({"a": "@a::b", "c": "$@a + '/x'"}))
    assert judge_bundle(bundle)
    write(bundle, "configs/more.json", json.dumps({"sum": "$" + " + ".join(["1"] * 400)}))
    assert judge_bundle(bundle) == []
