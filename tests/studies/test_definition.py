from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mim_components.run.options import holder_of, with_defaults
from studies.__main__ import own_studies
from studies.definition import ROOT, Study, StudyError, network_volumes
from studies.run import chosen

Write = Callable[[dict[str, Any]], Path]


def test_pretrainings_of_openkbp_cost_the_same() -> None:
    study = Study(ROOT / "studies" / "openkbp.json")
    options = [cell.options for cell in study.cells.values() if cell.phase == "pretraining"]
    assert {network_volumes(each) for each in options} == {(7, 7 * options[0]["max_steps"])}
    # arms with a pre-training: mcmae, mim, mcmae_wide, any, no_alignment, 2levels, byol, visible, mae3d
    assert len(options) == 9


def test_the_last_model_is_the_one_that_is_scored() -> None:
    study = Study(ROOT / "studies" / "openkbp.json")
    for cell in study.cells.values():
        if cell.phase == "fine_tuning":
            assert cell.options["validation_steps"] == cell.options["max_steps"], cell.name
            train, evaluate = cell.commands
            assert train.options["datalist"] == f"{{work}}/lists/train_{cell.labels}_seed{cell.seed}.json"
            assert evaluate.options["datalist"] == f"{{work}}/lists/test_{cell.labels}_seed{cell.seed}.json"


@pytest.mark.parametrize("path", own_studies(), ids=lambda path: path.stem)
def test_options_of_studies_are_those_of_the_bundles(path: Path) -> None:
    configs = ROOT / "bundles" / "mim_btcv_segmentation" / "configs"
    known = {
        "pretraining": json.loads((ROOT / "bundles" / "mim_pretrain" / "configs" / "train.json").read_text()),
        "fine_tuning": json.loads((configs / "train.json").read_text()),
    }
    study = Study(path)
    assert study.cells
    for cell in study.cells.values():
        for command in cell.commands:
            for option in command.options:
                place, name = holder_of(known[cell.phase], option)
                assert name in with_defaults(place), f"{cell.name}: {option}"


def test_a_later_round_states_what_differs(small: dict[str, Any], write: Write) -> None:
    first = write(small)
    second = first.with_name("second.json")
    second.write_text(json.dumps({"extends": first.name, "name": "second", "fine_tuning": {"options": {"lr": 3}}}))
    one, two = Study(first), Study(second)
    assert (two.name, two.bundle, list(two.cells)) == ("second", one.bundle, list(one.cells))
    for name, cell in two.cells.items():
        if cell.phase == "pretraining":  # the same work
            assert cell.digest == one.cells[name].digest
        else:
            assert cell.options == {**one.cells[name].options, "lr": 3}
    third = first.with_name("third.json")
    third.write_text(json.dumps({"extends": "second.json", "name": "third", "seeds": [0, 1]}))
    three = Study(third)
    assert (three.earlier, three.bundle) == (["second", "small"], one.bundle)
    assert {name: three.cells[name] for name in two.cells} == two.cells and len(three.cells) == 2 * len(two.cells)
    second.write_text(json.dumps({"extends": "third.json", "name": "second"}))
    with pytest.raises(StudyError, match=r"second.json: 'extends' names third.json, which leads back to itself"):
        Study(third)


def test_metadata_of_a_study_has_the_keys_of_a_bundle() -> None:
    keys = [
        set(json.loads((ROOT / place / "metadata.json").read_text())["dataset"])
        for place in ("studies/openkbp", "bundles/mim_btcv_segmentation/configs")
    ]
    assert keys[0] == keys[1]


def test_cells_in_order_with_what_they_need(small: dict[str, Any], write: Write) -> None:
    study = Study(write(small))
    assert list(study.cells) == ["scratch/1/seed0", "mim/pretraining/seed0", "mim/1/seed0"]
    assert study.cells["mim/1/seed0"].needs == "mim/pretraining/seed0"
    assert study.cells["scratch/1/seed0"].options["pretrained"] == "none"
    folder = study.cells["mim/pretraining/seed0"].folder
    assert study.cells["mim/1/seed0"].options["pretrained"] == f"{{work}}/cells/{folder}/models/encoder.safetensors"
    assert [cell.name for cell in chosen(study, "mim/1/*")] == ["mim/pretraining/seed0", "mim/1/seed0"]
    with pytest.raises(StudyError, match=r"--only 'mae/\*' matches none of the cells: scratch/1/seed0"):
        chosen(study, "mae/*")


def test_command_line_of_a_cell(small: dict[str, Any], write: Write) -> None:
    evaluate = Study(write(small)).cells["scratch/1/seed0"].commands[1]
    words = evaluate.filled({"data": "/d", "work": "/w", "cell": "/w/cells/c"})
    assert words[:4] == ["-m", "monai.bundle", "run", "--config_file"]
    assert words[4] == "['/w/bundle/configs/train.json','/w/bundle/configs/evaluate.json']"
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert options["--roi_size"] == "[32, 32, 32]" and options["--seed"] == "0"
    assert options["--datalist"] == "/w/lists/test_1_seed0.json" and options["--output_dir"] == "/w/cells/c"


def test_another_pretraining_is_another_fine_tuning(small: dict[str, Any], write: Write) -> None:
    before = Study(write(small)).cells
    small["arms"]["mim"]["pretraining"] = {"alpha": 0}
    small["title"] = "another title"
    after = Study(write(small)).cells
    changed = [name for name in before if before[name].digest != after[name].digest]
    assert changed == ["mim/pretraining/seed0", "mim/1/seed0"]


def test_one_pretraining_for_all_seeds(small: dict[str, Any], write: Write) -> None:
    small |= {"seeds": [0, 1], "pretraining_seed": 5}
    cells = Study(write(small)).cells
    assert [name for name in cells if "pretraining" in name] == ["mim/pretraining/seed5"]
    assert cells["mim/pretraining/seed5"].options["seed"] == 5
    assert [cells[f"mim/1/seed{seed}"].needs for seed in (0, 1)] == ["mim/pretraining/seed5"] * 2


def test_an_arm_states_what_differs(small: dict[str, Any], write: Write) -> None:
    small["arms"]["mim_b"] = {"like": "mim", "pretraining": {"alignment": "byol"}}
    small["arms"]["mim_c"] = {"like": "mim_b", "pretraining": {"alpha": 0.5}}
    small["order"] = [{"arms": ["mim_c"]}]
    options = Study(write(small)).cells["mim_c/pretraining/seed0"].options
    assert (options["alignment"], options["alpha"], options["preset"]) == ("byol", 0.5, "nano")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["order"].append({"arms": ["mae"]}), r"unknown arms \['mae'\]; there are \['scratch', 'mim'\]"),
        (lambda s: s["order"].append({"arms": ["mim"], "labels": [32]}), r"unknown labels \[32\]; there are \[1\]"),
        (lambda s: s["order"].append({"arm": "mim"}), r"'order\.1' .*'arm' was unexpected"),
        (lambda s: s["order"].append({"arms": ["mim"], "labels": 1}), r"'order\.1\.labels' 1 is not of type 'array'"),
        (lambda s: s.update(pretraining_sed=1), "'pretraining_sed' was unexpected"),
        (lambda s: s.update(seeds=["0"]), r"'seeds\.0' '0' is not of type 'integer'"),
        (lambda s: s.update(threads="x"), "'threads' 'x' is not of type 'integer'"),
        (lambda s: s["arms"].update(mim=None), r"'arms\.mim' None is not of type 'object'"),
        (lambda s: s["data"].pop("expected"), "'data' 'expected' is a required property"),
        (lambda s: s["data"].update(image="ct.nii.gz"), r"'data\.image' 'ct\.nii\.gz' does not match"),
        (lambda s: s["report"]["primary"].update(against="mae"), r"'report\.primary\.against' names 'mae'; there are"),
        (lambda s: s["report"]["primary"].update(labels=8), r"'report\.primary\.labels' names 8; there are 1"),
        (lambda s: s["report"].update(references=["mae"]), r"'report\.references' names 'mae'"),
        (lambda s: s["fine_tuning"].update(option={}), "'fine_tuning' .*'option' was unexpected"),
        (
            lambda s: s["pretraining"]["options"].update(datalist="{work}/lists/x.json"),
            r"'datalist' names \{work\}/lists/x\.json; the lists are pretraining, train_1_seed0, test_1_seed0",
        ),
        (
            lambda s: s["pretraining"]["options"].pop("num_children"),
            "arm 'mim': the options of its pre-training lack num_children, which its number of network volumes",
        ),
        (
            lambda s: s["pretraining"]["options"].update(seed="{sede}"),
            r"arm 'mim', command 'train' .* option 'seed' has the placeholder \{sede\}; known here: seed, data",
        ),
        (lambda s: s["pretraining"]["options"].update(max_steps="{labels}"), r"placeholder \{labels\}"),
        (lambda s: s["arms"]["mim"].update(like="mae"), "is like 'mae', which is not an arm; there are scratch, mim"),
        (
            lambda s: (s["arms"]["mim"].update(like="scratch"), s["arms"]["scratch"].update(like="mim")),
            "is like itself: scratch -> mim -> scratch",
        ),
        (
            lambda s: s["arms"]["mim"].update(finetuning={}),
            r"'arms\.mim' .*'finetuning' was unexpected",
        ),
        (lambda s: s.pop("seeds"), "'seeds' is a required property"),
        (lambda s: s["fine_tuning"].pop("commands"), "'fine_tuning' 'commands' is a required property"),
        (lambda s: s["pretraining"]["commands"]["train"].pop("config_files"), "'config_files' is a required property"),
    ],
)  # fmt: skip
def test_broken_study(
    small: dict[str, Any], write: Write, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(small)
    with pytest.raises(StudyError, match=message):
        Study(write(small))


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        Study(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(StudyError, match="must hold a JSON object, got list"):
        Study(tmp_path / "list.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(StudyError, match="no valid JSON"):
        Study(tmp_path / "half.json")
