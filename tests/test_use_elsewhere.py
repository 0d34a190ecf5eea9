"""All code on the page about use in other projects runs verbatim, with weights of the sizes that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mim_components.networks import HybridEncoder, ViTEncoder
from mim_components.weights import InputContract, save_encoder

PAGE = Path(__file__).resolve().parents[1] / "docs/use_elsewhere.md"
SIZE = (96, 96, 96)


def contract(kind: str) -> InputContract:
    return InputContract(kind, "base", 1, 16, SIZE, (SIZE,))


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "vit").mkdir()
    save_encoder(HybridEncoder(1, "base", dense_only=True), tmp_path / "encoder.safetensors", contract("hybrid"))
    save_encoder(ViTEncoder(1, "base", SIZE), tmp_path / "vit/encoder.safetensors", contract("vit"))
    names: dict[str, Any] = {"__name__": "page"}
    with torch.no_grad():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert names["last"].shape == (1, 384, 6, 6, 6)

    class Sees(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.seen = image
            return image

    wrapper = names["MiMForNNUNet"](1, 2)
    wrapper.network = Sees()
    image = torch.arange(24.0).view(1, 1, 2, 3, 4)  # z, y, x
    assert torch.equal(wrapper(image), image)
    assert wrapper.network.seen[0, 0, 0, 0, 1] == image[0, 0, 1, 2, 3]  # the rightmost, most anterior one: L, P's last
