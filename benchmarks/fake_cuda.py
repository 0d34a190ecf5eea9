"""CUDA without a GPU: tensors that claim to be on CUDA, with its autocast rules, but without memory or values.

`python -m benchmarks.fake_cuda MODULE ARGUMENTS` runs a module that way. The change to PyTorch cannot be undone and
must precede its import: the process does nothing else afterwards.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

BUILD = Path(__file__).resolve().parents[1] / "tests" / "cuda" / "build.py"


def extension() -> str:
    """The library that makes PyTorch see CUDA; built once, with a C++ compiler and ninja."""
    done = subprocess.run([sys.executable, str(BUILD)], stdout=subprocess.PIPE, text=True, check=True)
    return str(json.loads(done.stdout.splitlines()[-1])["guard"])


def begin(library: str) -> None:
    """Give this process a fake CUDA; tensors are fake within `torch._subclasses.FakeTensorMode`.

    Args:
        library: path from `extension`.
    """
    assert "torch" not in sys.modules, "PyTorch asks for CUDA's hooks when it is imported"
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *a, **k: True  # type: ignore[assignment]

    def move(self: nn.Module, device: Any = None, *args: Any, memory_format: Any = None, **options: Any) -> nn.Module:
        """`nn.Module.to` with new parameters: those of a fake network cannot be swapped."""
        memo: dict[int, nn.Parameter] = {}

        def moved(value: torch.Tensor) -> torch.Tensor:
            value = value if device is None else value.to(device)
            return value.contiguous(memory_format=memory_format) if memory_format and value.ndim == 5 else value

        for module in self.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    new = memo.setdefault(id(value), nn.Parameter(moved(value.detach()), value.requires_grad))
                    module._parameters[name] = new
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else moved(buffer)
        return self

    nn.Module.to = move  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    begin(extension())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
