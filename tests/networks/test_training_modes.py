"""Networks prepared for training, with less memory or compiled: same weights, losses and gradients."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn

from mim_components.networks import MiM, for_training, segmentation_network
from mim_components.networks.mim import ENCODERS
from mim_components.networks.training_modes import BLOCKS, on_device

SIZE, TOKENS, VISIBLE = (16, 16, 24), 12, 4  # nano: patch 8


def network(encoder: str = "hybrid", sparse: bool = True) -> MiM:
    torch.manual_seed(0)
    return MiM(1, SIZE, "nano", encoder, num_levels=2, projection_dim=16, sparse=sparse).train()


def images_and_masks() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(volumes, 1, *SIZE, generator=generator) for volumes in (1, 2)]
    ranks = [torch.rand(volumes, TOKENS, generator=generator).argsort(1) for volumes in (1, 2)]
    return images, [each >= VISIBLE for each in ranks]


def outputs_and_gradients(net: MiM) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The network's output, and the gradients of its mean square."""
    images, masked = images_and_masks()
    output = net(images, masked, VISIBLE)
    values = [each for part in output for each in part]
    net.zero_grad()
    sum(each.square().mean() for each in values if each.requires_grad).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return [each.detach() for each in values], gradients


class SavedBytes:
    """Bytes that autograd keeps for the backward pass, each storage counted once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def of(self, net: MiM) -> int:
        weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        with self.hooks:
            kept = net(*images_and_masks(), VISIBLE)
        del kept
        return sum(size for pointer, size in self.storages.items() if pointer not in weights)


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_recomputed_activations_give_the_same_bits(encoder: str) -> None:
    plain, light = network(encoder), for_training(network(encoder), "cpu", checkpoint_activations=True)
    expected, found = outputs_and_gradients(plain), outputs_and_gradients(light)
    assert all(torch.equal(a, b) for a, b in zip(expected[0], found[0], strict=True))
    assert expected[1].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in expected[1].items())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_less_is_kept_for_the_backward_pass(encoder: str) -> None:
    light = for_training(network(encoder), "cpu", checkpoint_activations=True)
    assert SavedBytes().of(light) < SavedBytes().of(network(encoder)) / 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_block_draws_random_numbers(encoder: str) -> None:
    # the state of the generator is not saved for recomputation
    dropouts = [m for block in network(encoder).modules() if isinstance(block, BLOCKS) for m in block.modules()]
    assert all(m.p == 0 for m in dropouts if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("options", [{}, {"checkpoint_activations": True}, {"compile": True}, {"compile": "default"}])
def test_it_is_the_same_network_with_the_same_keys(options: dict[str, bool | str]) -> None:
    plain = network()
    keys = list(plain.state_dict())
    ready = for_training(plain, torch.device("cpu"), **options)
    assert ready is plain and list(ready.state_dict()) == keys
    network().load_state_dict(ready.state_dict())


def test_the_layout_of_the_weights_on_a_cpu_changes_nothing_but_rounding() -> None:
    plain = segmentation_network("hybrid_swin_unetr", 1, 3, (32, 16, 16), "nano")
    trained, evaluated = for_training(copy.deepcopy(plain), "cpu"), on_device(copy.deepcopy(plain), torch.device("cpu"))
    image = torch.rand(2, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    for each in (plain, trained):
        each(image).square().mean().backward()
    torch.testing.assert_close(trained(image), plain(image))
    for (name, a), (_, b) in zip(plain.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-6, msg=name)
    # a validation in the training and an evaluation after it give the same scores, encoders the same features
    assert torch.equal(evaluated(image), trained(image))
    assert all(torch.equal(a, b) for a, b in zip(plain.encoder(image), trained.encoder(image), strict=True))
    layouts = {
        name.split(".")[0]: module.weight.is_contiguous(memory_format=torch.channels_last_3d)
        for name, module in trained.named_modules()
        if isinstance(module, nn.Conv3d) and min(module.weight.shape[1], *module.kernel_size) > 1
    }
    assert layouts == {"encoder": False, "bottleneck": True, "down": True, "skips": True, "ups": True}


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_network_is_one_graph(checkpoint_activations: bool) -> None:
    torch.compiler.reset()
    plain = network()
    whole = for_training(copy.deepcopy(plain), "cpu", checkpoint_activations)
    whole.compile(backend="aot_eager", dynamic=False, fullgraph=True)  # raises if it is not
    expected, found = outputs_and_gradients(plain), outputs_and_gradients(whole)
    for pair in zip(expected, found, strict=True):
        torch.testing.assert_close(pair[1], pair[0], rtol=1e-4, atol=1e-6)


FORMS = [("hybrid", True, False), ("hybrid", False, False), ("hybrid", True, True), ("vit", True, False)]


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "sparse", "amp"), FORMS)
@pytest.mark.filterwarnings("ignore")
def test_no_form_breaks_its_graph(encoder: str, sparse: bool, amp: bool) -> None:
    torch.compiler.reset()
    found = torch._dynamo.utils.counters
    found.clear()
    net = network(encoder, sparse)
    net.compile(backend="eager", dynamic=False, fullgraph=True)
    images, masked = images_and_masks()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        net(images, masked, VISIBLE)
        # in passes of one level each, the child with the features of its parent
        parent = net([images[0], images[1][:0]], [masked[0], masked[1][:0]], VISIBLE, [None])
        net([images[0][:0], images[1]], [masked[0][:0], masked[1]], VISIBLE, [parent.latent[0].expand(2, -1, -1)])
    assert found["stats"]["unique_graphs"] == 3 and not found["graph_break"]


def test_auto_leaves_the_choice_to_the_training() -> None:
    assert for_training(network(), "cpu", compile="auto")._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_module_computes_the_same() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU())
    compiled = for_training(copy.deepcopy(plain), "cpu", compile=True)
    x = torch.rand(3, 4)
    for each in (plain, compiled):
        each(x).square().sum().backward()
    torch.testing.assert_close(compiled(x), plain(x))
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unrecognized mode=fast, should be one of.*reduce-overhead"):
        for_training(network(), "cpu", compile="fast")
