"""Export trained weights to run them without this package: TorchScript (.ts), ONNX (.onnx) or torch.export (.pt2).

python -m mim_tools.export bundles/mim_btcv_segmentation/configs/inference.json model.onnx [--checkpoint PATH ...]
python -m mim_tools.export bundles/mim_pretrain/models/encoder.safetensors encoder.onnx

With a configuration, options are those of its bundle. The file takes any number of windows of the size that the
network was trained on, scaled as in the bundle. It is compared with PyTorch before it is written: a failed export
leaves no file.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import
from torch import Tensor, nn

from mim_components.networks import HybridEncoder, ViTEncoder
from mim_components.utils.files import as_size, write_safely
from mim_components.weights.contract import read_contract

FORMATS = (".ts", ".onnx", ".pt2")
TOLERANCE = 1e-4
SIZES = ("roi_size", "input_size")  # bundles' names for the size of a window

has_onnx = all(optional_import(name)[1] for name in ("onnx", "onnxruntime", "onnxscript"))

Converted = tuple[bytes, Callable[[], Callable[[Tensor], list[Tensor]]]]


class ExportError(ValueError):
    """A network cannot be exported, or the result differs from the network's; says why."""


def from_config(config: Path, options: Mapping[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    """The trained network of a bundle, in evaluation mode, and the shape `(1, C, H, W, D)` of a window.

    Args:
        config: `inference.json` of a fine-tuning bundle.
        options: values by key that replace those of the configuration.

    Raises:
        ExportError: the configuration has no such option, or is not of such a bundle.
    """
    parser = ConfigParser()
    parser.read_meta(config.parent / "metadata.json")
    parser.read_config(config)
    unknown = sorted(options.keys() - parser.get().keys())
    if unknown:
        raise ExportError(f"{config}: has no option {', '.join(unknown)}.")
    parser.update({"bundle_root": str(config.absolute().parents[1]), **options})
    size = next((name for name in SIZES if name in parser), None)
    if size is None or "settings" not in parser:
        raise ExportError(
            f"{config}: not the inference.json of a fine-tuning bundle; an encoder is exported from its "
            "encoder.safetensors."
        )
    network = parser.get_parsed_content("trained").network
    return network, (1, parser.get_parsed_content("in_channels"), *parser.get_parsed_content(size))


def from_encoder(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """A pre-trained encoder, in evaluation mode, and the shape `(1, C, H, W, D)` of a volume of its training."""
    contract = read_contract(path)
    encoder = HybridEncoder if contract.encoder == HybridEncoder.kind else ViTEncoder
    return encoder.from_pretrained(path), (1, contract.in_channels, *contract.input_size)


def export(network: nn.Module, shape: Sequence[int], path: Path) -> float:
    """Write a network in the format given by the suffix of `path`.

    Args:
        network: network on CPU in evaluation mode; returns a tensor or a list of tensors.
        shape: shape `(1, C, H, W, D)` of one input; the file takes any number of them.
        path: file to write, ending in `.ts`, `.onnx` or `.pt2`.

    Returns:
        The largest difference from PyTorch on a random input.

    Raises:
        ExportError: unknown suffix, a package is missing, or the outputs differ by more than `TOLERANCE`.
        OSError: the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise ExportError(f"{path}: must end in {', '.join(FORMATS)}, got {path.suffix!r}.")
    pair = torch.rand(2, *shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecation warnings
        content, reader = {".ts": _torchscript, ".onnx": _onnx, ".pt2": _exported}[path.suffix](network, pair)
        compute, one = reader(), pair[:1]  # one input where two were recorded: the batch size is free
        difference = _difference(compute(one), _as_list(network(one)))
    if not difference <= TOLERANCE:
        raise ExportError(f"{path}: differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}; not written.")
    write_safely(path, lambda partial: partial.write_bytes(content))
    return difference


def _torchscript(network: nn.Module, inputs: Tensor) -> Converted:
    buffer = io.BytesIO()
    # strict: an encoder returns a list
    torch.jit.save(torch.jit.trace(network, inputs, check_trace=False, strict=False), buffer)
    return buffer.getvalue(), lambda: _listed(torch.jit.load(io.BytesIO(buffer.getvalue())))


def _exported(network: nn.Module, inputs: Tensor) -> Converted:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},)), buffer)
    return buffer.getvalue(), lambda: _listed(torch.export.load(io.BytesIO(buffer.getvalue())).module())


def _onnx(network: nn.Module, inputs: Tensor) -> Converted:
    if not has_onnx:
        raise ExportError('ONNX needs three packages: pip install -e ".[export]".')
    import onnxruntime

    program = torch.onnx.export(
        network, (inputs,), input_names=["image"], dynamic_shapes=({0: "batch"},), dynamo=True, verbose=False,
        custom_translation_table={torch.ops.aten.instance_norm.default: _instance_norm},
    )  # fmt: skip
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()

    def read() -> Callable[[Tensor], list[Tensor]]:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda image: [torch.from_numpy(each) for each in session.run(None, {"image": image.numpy()})]

    return content, read


def _instance_norm(
    image: Any, weight: Any = None, bias: Any = None, running_mean: None = None, running_var: None = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = False,
) -> Any:  # fmt: skip
    """ONNX nodes of an instance norm that reduces one axis at a time.

    ONNX's own InstanceNormalization adds up all voxels of a channel one after the other in ONNX Runtime on CPU: on a
    window with much air logits were off by 0.05 (version 1.32), and are by 5e-5 this way, in 1.1 times the time.
    """
    from onnxscript import opset18

    op: Any = opset18
    rank = len(image.shape)

    def mean(values: Any) -> Any:
        for axis in range(2, rank):
            values = op.ReduceMean(values, op.Constant(value_ints=[axis]), keepdims=1)
        return values

    centred = op.Sub(image, mean(image))
    variance = mean(op.Mul(centred, centred))
    normal = op.Div(centred, op.Sqrt(op.Add(variance, op.Constant(value_float=eps))))
    for combine, values in ((op.Mul, weight), (op.Add, bias)):
        if values is not None:
            normal = combine(normal, op.Reshape(values, op.Constant(value_ints=[-1] + [1] * (rank - 2))))
    return normal


def _as_list(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def _listed(network: Callable[[Tensor], Any]) -> Callable[[Tensor], list[Tensor]]:
    return lambda image: _as_list(network(image))


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def read_pairs(words: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """`--key value` pairs; values are Python literals or strings."""
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        parser.error(f"options are pairs --key value, got {' '.join(words)}")
    return {key[2:]: _value(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and print its size; returns 1 if the export failed."""
    parser = argparse.ArgumentParser(
        "python -m mim_tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="inference.json of a bundle, or encoder.safetensors")
    parser.add_argument("output", type=Path, help=f"file to write, ending in {', '.join(FORMATS)}")
    known, rest = parser.parse_known_args(arguments)
    options = read_pairs(rest, parser)
    try:
        if known.source.suffix == ".json":
            network, shape = from_config(known.source, options)
        elif options:
            raise ExportError(f"{known.source}: an encoder takes no options, got {', '.join(options)}.")
        else:
            network, shape = from_encoder(known.source)
        difference = export(network, shape, known.output)
    except (ValueError, OSError) as error:  # including errors of the weights
        print(error, file=sys.stderr)
        return 1
    size = as_size(known.output.stat().st_size)
    print(f"{known.output}: {size}, input (any, {', '.join(map(str, shape[1:]))}), off by {difference:.1g} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
