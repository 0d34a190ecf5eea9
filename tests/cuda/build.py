"""Build an extension by name, without optimisation, since it runs only for seconds. The last line printed is its file.

It is built in the working folder: a killed build in PyTorch's own folder leaves a lock there, on which all later builds
wait forever.
"""

import sys
from pathlib import Path

from torch.utils.cpp_extension import load

HERE = Path(__file__).parent

if __name__ == "__main__":
    name = sys.argv[1]
    source, place = str(HERE / f"{name}.cpp"), str(Path.cwd())
    print(load(f"mim_{name}", [source], is_python_module=False, extra_cflags=["-O0"], build_directory=place))
