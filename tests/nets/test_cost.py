"""Parameters, multiply-adds and activation memory against torch's own counters and counts by hand."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coterie.cohort import Cohort
from coterie.core.errors import ShapeError
from coterie.nets import NETS
from coterie.nets.cost import activation_bytes, count_parameters, multiply_adds


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "densenet40_12", "vgg8", "conv4"])
def test_multiply_adds_are_half_of_torchs_operations(name: str) -> None:
    net = NETS[name](num_classes=10, image_size=32).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    assert multiply_adds(net, (3, 32, 32)) * 2 == counter.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, (3, 1), stride=2, groups=2), (4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
        (nn.Conv1d(3, 5, 3), (3, 10)),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
        (nn.Linear(6, 3), (5, 6)),
    ],
)
def test_every_kind_of_layer_counts_as_torch_does(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, *shape))
    assert multiply_adds(layer, shape) * 2 == counter.get_total_flops() > 0


def test_a_layer_counts_as_often_as_it_runs_and_its_weights_once() -> None:
    layer = nn.Linear(5, 5)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert multiply_adds(net, (5,)) == 50
    assert count_parameters(net) == 30


def test_shared_stages_of_a_cohort_count_once() -> None:
    nets = [NETS["resnet8"](num_classes=10) for _ in range(3)]
    alone = multiply_adds(nets[0], (3, 32, 32))
    assert multiply_adds(Cohort(nets), (1, 3, 32, 32), batch_dim=1) == 3 * alone
    shared = 32 * 32 * 9 * (3 * 16 + 2 * 16 * 16)
    assert multiply_adds(Cohort(nets, shared=1), (1, 3, 32, 32), batch_dim=1) == 3 * alone - 2 * shared


def test_counting_leaves_no_trace() -> None:
    net = nn.Sequential(NETS["resnet8"](num_classes=10), nn.Dropout(0.5)).train()
    net[0].head.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    multiply_adds(net, (3, 32, 32))
    activation_bytes(net, (3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and not net[0].head.training
    assert not any(layer._forward_hooks for layer in net.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(weight.grad is None for weight in net.parameters())


def test_activations_of_a_chain_counted_by_hand() -> None:
    """A convolution keeps its input, a batch norm its input, a ReLU in place its output, a linear layer its input."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 2),
    )
    statistics = 2 * 8 * 4 // 2  # mean and deviation of the batch, shared by its two images
    assert activation_bytes(net, (3, 4, 4)) == 4 * (48 + 128 + 128) + statistics


def test_half_precision_halves_maps_and_not_indices() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2))
    image, maps, indices = 3 * 64, 4 * 64, 4 * 16 * 8
    assert activation_bytes(net, (3, 8, 8)) == 4 * (image + maps) + indices
    assert activation_bytes(net, (3, 8, 8), torch.bfloat16) == 2 * (image + maps) + indices


def test_frozen_networks_keep_nothing() -> None:
    assert activation_bytes(NETS["cnn4_w4"](num_classes=3).requires_grad_(False), (3, 8, 8)) == 0


def test_maps_of_a_shared_trunk_are_kept_once() -> None:
    nets = [NETS["cnn4_w8"](num_classes=10) for _ in range(4)]
    separate = activation_bytes(Cohort(nets), (1, 3, 8, 8), batch_dim=1)
    shared = activation_bytes(Cohort(nets, shared=2), (1, 3, 8, 8), batch_dim=1)
    assert shared < separate / 2 < 2 * activation_bytes(nets[0], (3, 8, 8))


@pytest.mark.parametrize("counter", [multiply_adds, activation_bytes])
def test_images_that_do_not_fit_are_named_in_one_line(counter: object) -> None:
    with pytest.raises(ShapeError, match=r"StagedNet does not take images of shape \[\d, 1, 8, 8\]") as error:
        counter(NETS["cnn4_w4"](num_classes=3), (1, 8, 8))  # type: ignore[operator]
    assert "\n" not in str(error.value)


class Branching(nn.Module):
    """Decides by a value, so it cannot be traced without one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images) if images.sum() > -1 else images


def test_networks_with_control_flow_are_counted() -> None:
    assert multiply_adds(Branching(), (4,)) == 8


@pytest.mark.parametrize("counter", [multiply_adds, activation_bytes])
def test_the_copy_that_was_counted_is_gone(counter: Callable[..., int]) -> None:
    weights: list[weakref.ref[Tensor]] = []

    class Seen(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            weights.append(weakref.ref(self.weight))
            return super().forward(images).relu()

    net = nn.Sequential(Seen(6, 5), nn.Sigmoid(), nn.Linear(5, 2))
    counter(net, (6,))
    gc.collect()
    assert [weight() for weight in weights] == [None]
