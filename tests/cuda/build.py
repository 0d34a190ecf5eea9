"""Build the two extensions, unoptimised: they run for seconds. The last line printed is where they lie, as JSON."""

import json
from pathlib import Path

from torch.utils.cpp_extension import load

HERE = Path(__file__).parent
print(
    "\n"
    + json.dumps(
        {
            name: load(f"mim_{name}", [str(HERE / f"{name}.cpp")], is_python_module=False, extra_cflags=["-O0"])
            for name in ("guard", "strict")
        }
    )
)
