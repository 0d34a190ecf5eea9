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
        "$dict(a=@b, **@c)",
        "$sorted(@a, reverse=True)",
        "$max(@a, default=0)",
        "$sum(@a, start=1)",
        "$torch.zeros(2, 3, dtype=torch.float32, device=@device)",
        "$@network.to(device=@device, dtype=torch.float32)",
        "$[name for name, value in @network.named_parameters()]",
        "$np.ceil(@a).item()",
        "$monai.data.list_data_collate",
        "$@a.get('x', 1)",
        "${'a': {1, 2}}",
    ],
)
def test_harmless_expressions(expression: str) -> None:
    assert expressions.why_not(expression) == ""


def test_no_accepted_expression_can_reach_the_builtins() -> None:
    dangerous = {"eval", "exec", "open", "compile", "getattr", "setattr", "vars", "globals", "locals", "input", "type"}
    assert not dangerous & expressions.BUILTINS.keys()
    assert not any("." in name for name in expressions.BUILTINS)
    assert not {"format", "system", "write_text", "unlink", "open"} & expressions.METHODS.keys()


@pytest.mark.parametrize(
    "attribute",
    """
    copy_into dump dumps fromfile from_file load_state_dict memmap move move_into register_forward_hook save savetxt
    savez tofile truncate writelines write_text numpy apply map_ requires_grad_ untyped_storage from_buffer query
    """.split(),
)
@pytest.mark.parametrize("form", ["$@a.{}", "$@a['b'].{}", "$@a.{}('x')", "$@a.{}()", "$np.ceil([2.0]).{}"])
def test_attributes_and_methods_that_are_not_listed(attribute: str, form: str) -> None:
    assert expressions.why_not(form.format(attribute))


@pytest.mark.parametrize(
    "expression",
    [
        # something called by what receives it
        "$sorted(['' + '/tmp/x/usercustomize.py'], key=np.ceil([2.0]).tofile)",
        "$sorted(['x'], key=@array.item)",
        "$sorted(['x'], key=len)",
        "$sorted(['x'], **{'key': @array.tofile})",
        "$max(['x'], key=@array.tofile)",
        "$min('x', 'y', key=@array.tofile)",
        "$max(['x'], **@options)",
        "$map(@array.tofile, ['x'])",
        "$filter(@array.tofile, ['x'])",
        "$functools.partial(@array.tofile, 'x')()",
        "$monai.utils.set_determinism(0, None, [@f])",
        "$monai.utils.set_determinism(seed=0, additional_settings=@f)",
        "$monai.handlers.from_engine(['pred'], key=@f)",
        "$len",
        "$list",
        "$[len, max]",
        "$torch.tensor",
        "$np.ceil",
        "$torch.ones(2, out=@x)",
        "$np.ceil([1.0], @x)",
        "$np.ceil([2.0]).size",
        "$'x'.lower",
        "$[1].copy",
        "$(1).type",
        "$[a for a in @x][0].name",
        "$(@a or @b).name",
        # arguments for methods that need none
        "$@table.eval('1')",
        "$@path.copy('x')",
        "$@engine.run(@data)",
        "$@x.to(@device, memory_format=@y)",
        "$@network.to(**@x)",
        # a comprehension that changes components
        "$[0 for @a.name in [@b]]",
        "$[0 for @a['x'] in [@b]]",
        "$[0 for @a in [@b]]",
        "$[0 for (x, @a.name) in [@b]]",
        "$[0 for [x, y] in [@b]]",
        "$[0 for x, *y in [@b]]",
        "$[x async for x in @a]",
        "${x: 1 for x in @a}",
        "${x for x in @a}",
        # text from bytes and from formats
        "$str(b'\\x2fhome', 'utf-8')",
        "$b'x'",
        "$f'{@a!r}'",
        "$'{}'.format(@a)",
        "$'/'.join(['', 'home'])",
        "$'x/home'.strip('x')",
        "$'x/home'.split('x')",
        "$'x'.replace('x', '/')",
        # the rest of the grammar
        "$(x := @a)",
        "$lambda: 1",
        "$[*@a]",
        "$@a(*@b)",
        "$(yield)",
        "$monai.utils.misc.os.system('x')",
        "$monai.utils.module.locate('os')",
        "$torch.os",
        "$np.save",
        "$numpy.lib.npyio.os",
        "$ignite.engine",
        "$mim_components.run",
        "$torch.from_file('x', True, 1)",
        "$torch.save(@a, 'x')",
        "$torch.compile(@a)",
    ],
)
def test_what_could_call_or_change_something(expression: str) -> None:
    assert expressions.why_not(expression)


def test_a_function_is_no_argument_of_a_component(bundle: Path) -> None:
    found = only(with_config(bundle, x={"_target_": "monai.transforms.Lambda", "func": "$np.ceil([2.0]).tofile"}))
    assert (found.key, "tofile" in found.why) == ("x::func", True)
    found = only(
        with_config(
            bundle,
            a="$np.ceil([2.0])",
            x={"_target_": "monai.transforms.Lambda", "func": "$@a.tofile", "_mode_": "callable"},
        )
    )
    assert found.key == "x::func"


@pytest.mark.parametrize("key", ["_mode_", "_requires_", "_disabled_", "_desc_", "_debug_"])
def test_keys_of_monai_are_judged_like_others(bundle: Path, key: str) -> None:
    findings = with_config(bundle, x={"_target_": "UNet", key: "$@a.tofile('/tmp/x')"})
    assert findings and {found.key for found in findings} == {f"x::{key}"}
