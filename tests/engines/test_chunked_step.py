"""Volumes in several passes: the same losses and gradients as in a single pass, with less memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from monai.data import list_data_collate
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from mim_components.data.load.sampler import StepSampler
from mim_components.engines.pretraining import PretrainStep
from mim_components.losses import MiMLoss
from mim_components.networks import MiM, for_training
from mim_components.transforms.crop import MultiLevelCropMaskd
from mim_components.transforms.levels import level_batch, split_levels

SIZE, VISIBLE = (24, 24, 24), 10  # 27 tokens of 8^3 voxels, floor(27 * 0.4) visible
SIZES = [(64, 64, 64), (20, 20, 20), (8, 8, 8)]


def make_batch(num_levels: int = 3, children: int = 2, samples: int = 1, seed: int = 0) -> dict[str, Any]:
    crop = MultiLevelCropMaskd("image", SIZES[:num_levels], SIZE, 8, 0.6, children).set_random_state(seed)
    generator = torch.Generator().manual_seed(seed)
    items = [crop({"image": torch.rand(1, 70, 70, 70, generator=generator)}) for _ in range(samples)]
    batch = list_data_collate(items)
    return {**batch, "name": [f"scan_{seed}_{i}" for i in range(samples)]}


def make_network(num_levels: int = 3, dtype: torch.dtype = torch.float64, **options: Any) -> MiM:
    torch.manual_seed(0)
    return MiM(1, SIZE, "nano", num_levels=num_levels, projection_dim=16, **options).to(dtype)


def make_engine(network: torch.nn.Module, loss: MiMLoss, iteration: int = 1) -> Any:
    """A trainer that leaves the weights unchanged."""
    state = SimpleNamespace(device=torch.device("cpu"), iteration=iteration)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    return SimpleNamespace(network=network, optimizer=optimizer, loss_function=loss, state=state)


def loader_of(accumulation: int = 1, num_steps: int = 1) -> Any:
    """The part of a loader that a step needs."""
    return SimpleNamespace(sampler=StepSampler(1, num_steps, accumulation))


def run_step(
    network: MiM, loss: MiMLoss, batches: list[dict[str, Any]], limit: int | None, iteration: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run a step; returns its losses with the gradient's norm, and the gradients by name."""
    dtype = next(network.parameters()).dtype
    batches = [
        {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}
        for batch in batches
    ]
    levels = len(network.alignment_heads) + 1
    step = PretrainStep(levels, loader_of(len(batches), 10), VISIBLE, max_volumes_per_pass=limit)
    output = step(make_engine(network, loss, iteration), batches)
    losses = {
        name: value
        for name, value in output.items()
        if name.startswith(("loss", "recon", "align", "empty", "gradient"))
    }
    return losses, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def make_loss(num_levels: int = 3, **options: Any) -> MiMLoss:
    return MiMLoss(8, (1.0, 2.0, 0.5)[:num_levels], (0.1, 0.3)[: num_levels - 1], **options)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        # (level, volumes from, to, parents from, to)
        ([1, 2, 4], 7, [(0, 0, 1, 0, 0), (1, 0, 2, 0, 1), (2, 0, 4, 0, 2)]),
        ([1, 2, 4], 3, [(0, 0, 1, 0, 0), (1, 0, 2, 0, 1), (2, 0, 2, 0, 1), (2, 2, 4, 1, 2)]),  # whole families
        ([2, 6], 2, [(0, 0, 2, 0, 0), (1, 0, 2, 0, 1), (1, 2, 3, 0, 1), (1, 3, 5, 1, 2), (1, 5, 6, 1, 2)]),
        ([3], 2, [(0, 0, 2, 0, 0), (0, 2, 3, 0, 0)]),
    ],
)
def test_parts_have_whole_families_or_one_parent(
    sizes: list[int], limit: int, expected: list[tuple[int, int, int, int, int]]
) -> None:
    parts = split_levels(sizes, limit)
    found = [(p.level, p.volumes.start, p.volumes.stop, p.parents.start or 0, p.parents.stop) for p in parts]
    assert found == expected


def test_take_gives_the_volumes_of_a_part_and_nothing_of_other_levels() -> None:
    levels = level_batch(make_batch(children=2), 3)
    part = split_levels(levels.sizes, 2)[-1]
    taken = levels.take(part)
    assert taken.sizes == [0, 0, 2] and [len(each) for each in taken.parent_token] == [0, 2]
    assert torch.equal(taken.images[2], levels.images[2][2:]) and torch.equal(taken.masked[2], levels.masked[2][2:])
    assert torch.equal(taken.parent_token[1], levels.parent_token[1][2:])
    assert torch.equal(taken.parent_overlap[1], levels.parent_overlap[1][2:])


# --- equal to one pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_levels", "children", "samples", "limit", "options"),
    [
        (3, 2, 1, 1, {}),
        (3, 4, 1, 8, {}),
        (3, 2, 1, 100, {}),
        (2, 3, 2, 2, {}),  # a family in two parts, two samples
        (3, 2, 2, 3, {"kind": "byol"}),
        (2, 4, 1, 3, {"schedule": "coarse_to_fine", "normalize_target": True}),
        (1, 1, 3, 2, {}),
    ],
)
def test_losses_and_gradients_of_several_passes_are_those_of_one(
    num_levels: int, children: int, samples: int, limit: int, options: dict[str, Any]
) -> None:
    network, loss = make_network(num_levels), make_loss(num_levels, **options)
    batch = make_batch(num_levels, children, samples)
    terms, gradients = run_step(network, loss, [batch], None, iteration=4)
    chunked_terms, chunked_gradients = run_step(network, loss, [batch], limit, iteration=4)
    torch.testing.assert_close(chunked_terms, terms, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(chunked_gradients, gradients, rtol=1e-9, atol=1e-13)
    assert gradients and all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("limit", [1, 3])
def test_children_without_content_are_left_out_of_the_whole_not_of_a_part(limit: int) -> None:
    network, batch = make_network(), make_batch(children=2, samples=2)
    batch["content_level2"] = torch.tensor([[True, False], [False, False]])
    batch["content_level3"] = torch.tensor([[True, False, True, True], [False, True, False, False]])
    terms, gradients = run_step(network, make_loss(), [batch], None)
    chunked_terms, chunked_gradients = run_step(network, make_loss(), [batch], limit)
    assert terms["empty_children_level2"] == chunked_terms["empty_children_level2"] == 3 / 4
    assert terms["empty_children_level3"] == chunked_terms["empty_children_level3"] == 4 / 8
    torch.testing.assert_close(chunked_terms, terms, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(chunked_gradients, gradients, rtol=1e-9, atol=1e-13)


def test_accumulation_with_content_equals_one_large_batch() -> None:
    network, large = make_network(), make_batch(children=2, samples=2)
    large["content_level2"] = torch.tensor([[True, False], [False, False]])
    large["content_level3"] = torch.tensor([[True, False, True, True], [False, False, False, False]])
    small = [
        {name: value[i : i + 1] if isinstance(value, Tensor) else value for name, value in large.items()}
        for i in range(2)
    ]
    terms, gradients = run_step(network, make_loss(), [large], None)
    other_terms, other_gradients = run_step(network, make_loss(), small, None)
    torch.testing.assert_close(other_terms, terms, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-9, atol=1e-13)


def test_in_float32_they_differ_by_rounding_only() -> None:
    network, batch = make_network(dtype=torch.float32), make_batch()
    terms, gradients = run_step(network, make_loss(), [batch], None)
    chunked_terms, chunked_gradients = run_step(network, make_loss(), [batch], 3)
    torch.testing.assert_close(chunked_terms, terms, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(chunked_gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_micro_batches_accumulate() -> None:
    network, batches = make_network(), [make_batch(seed=0), make_batch(seed=1)]
    terms, gradients = run_step(network, make_loss(), batches, None)
    chunked_terms, chunked_gradients = run_step(network, make_loss(), batches, 2)
    torch.testing.assert_close(chunked_terms, terms, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(chunked_gradients, gradients, rtol=1e-9, atol=1e-13)


def test_control_every_part_counts() -> None:
    network, batch = make_network(), make_batch()
    _, gradients = run_step(network, make_loss(), [batch], 2)
    changed = copy.deepcopy(batch)
    changed["image_level3"][:, -1] += 1  # the last volume of the last part
    _, others = run_step(network, make_loss(), [changed], 2)
    assert all((gradients[name] != others[name]).any() for name in gradients if "alignment_heads.0" not in name)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients if "alignment_heads.0" in name)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_no_pass_is_larger_than_the_limit_and_all_have_every_parameter_in_their_graph() -> None:
    network, sizes = make_network(), []
    network.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    step = PretrainStep(3, loader_of(), VISIBLE, max_volumes_per_pass=2)
    batch = {k: v.double() if str(k).startswith("image") else v for k, v in make_batch().items()}
    for make in step.passes(make_engine(network, make_loss()), batch):
        network.zero_grad()
        make()["loss"].backward()
        assert all(p.grad is not None for p in network.parameters())  # which DDP's exchange needs
    assert sizes == [1, 2, 2, 2]


def test_a_network_that_teaches_parents_is_refused() -> None:
    with pytest.raises(ValueError, match="max_volumes_per_pass needs stop_gradient=True: with stop_gradient=False"):
        run_step(make_network(stop_gradient=False), make_loss(), [make_batch()], 4)


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_volumes_per_pass must be at least 1, or null for no limit, got 0"):
        PretrainStep(3, loader_of(), max_volumes_per_pass=0)


# --- waiting for the device ------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts operations whose result Python needs: on a CUDA device they wait for everything before them."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        self.count += function.overloadpacket in waiting
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("batches", "limit"), [(1, None), (2, None), (2, 2)])
def test_a_step_waits_once_to_see_that_all_is_finite(batches: int, limit: int | None) -> None:
    network, loss = make_network(dtype=torch.float32), make_loss(normalize_target=True)
    step = PretrainStep(3, loader_of(batches), VISIBLE, max_norm=1.0, max_volumes_per_pass=limit)
    made = [make_batch(seed=seed) for seed in range(batches)]
    with Waits() as waits:
        step(make_engine(network, loss), made)
    assert waits.count == 1


# --- several devices --------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    idist.finalize()  # destroys the group, and Ignite's record of it


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of a weight with one channel, a few numbers
def test_ddp_exchanges_every_gradient_once_a_step(one_process: None) -> None:
    network, loss = make_network(2, torch.float32), make_loss(2)
    batches = [make_batch(2, 2, seed=seed) for seed in (0, 1)]
    _, expected = run_step(network, loss, batches, 1)
    exchanged: list[int] = []

    def count(state, bucket):  # DDP refuses annotations that are text
        exchanged.append(bucket.buffer().numel())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped = DistributedDataParallel(network)
    wrapped.register_comm_hook(None, count)
    step = PretrainStep(2, loader_of(2, 10), VISIBLE, max_volumes_per_pass=1)
    for _ in range(2):  # a parameter without a gradient would fail the next step
        exchanged.clear()
        step(make_engine(wrapped, loss), batches)
        assert sum(exchanged) == sum(p.numel() for p in network.parameters())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@torch._dynamo.config.patch(optimize_ddp=torch._dynamo.config.optimize_ddp)  # restored afterwards
def test_a_compiled_network_trains_in_several_processes(one_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: real(self, backend="aot_eager", dynamic=False))
    torch.manual_seed(0)
    network = MiM(1, SIZE, "nano", projection_dim=2048)  # several buckets of DDP
    loss, batches = make_loss(), [make_batch()]
    _, expected = run_step(network, loss, batches, None)
    wrapped = DistributedDataParallel(for_training(network, "cpu", compile=True), find_unused_parameters=True)
    PretrainStep(3, loader_of(1, 10), VISIBLE)(make_engine(wrapped, loss), batches)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name, rtol=1e-3, atol=1e-6)
