from __future__ import annotations

from pathlib import Path

import pytest

from mim_tools.verify import expressions
from tests.tools.verify.good import only, with_config


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
