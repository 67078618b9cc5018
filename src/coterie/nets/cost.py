"""What a network costs: parameters, multiply-adds, and the memory that training keeps for the backward pass.

All counts are taken from a forward pass of a deep copy on the CPU, so the network itself, its batch norms and the
random number generators stay as they were, and any module can be counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coterie.core.errors import ShapeError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_parameters(net: nn.Module) -> int:
    """Number of trained and frozen weights; one that several layers share is counted once."""
    return sum(parameter.numel() for parameter in net.parameters())


def multiply_adds(net: nn.Module, image_shape: Sequence[int], *, batch_dim: int = 0) -> int:
    """Count the multiply-adds of all convolutions and linear layers for one image.

    Biases, normalisation, activations and pooling are left out, as is usual. A layer that runs twice is counted twice;
    stages that a cohort shares run once and are counted once.

    Args:
        net: any module that maps a batch of images to something.
        image_shape: shape of the input without its batch dimension, `[C, H, W]`; `[1, C, H, W]` for a cohort.
        batch_dim: where the batch dimension goes; 1 for a cohort, whose input is `[V, B, C, H, W]`.

    Returns:
        Multiply-adds; floating point operations are twice as many.

    Raises:
        ShapeError: the network does not take images of this shape.

    Example:
        >>> multiply_adds(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 10)), (3, 4, 4))
        4736
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _positions(layer, inputs[0], output) * layer.get_parameter("weight").numel()

    twin = _twin(net).eval()
    for layer in twin.modules():
        if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        _run(twin, _images(image_shape, 1, batch_dim))
    return total


def activation_bytes(
    net: nn.Module, image_shape: Sequence[int], dtype: torch.dtype = torch.float32, *, batch_dim: int = 0
) -> int:
    """Estimate how many bytes of maps training keeps for the backward pass, per image.

    Every storage that autograd saves is counted once and parameters are left out. Floating point maps count as
    `dtype`, indices of max-pools as they are. Kernels of other devices may save a little more or less.

    Args:
        net: any module that maps a batch of images to something that depends on its parameters.
        image_shape: shape of the input without its batch dimension; see `multiply_adds`.
        dtype: type of the maps, for instance that of autocast.
        batch_dim: where the batch dimension goes; see `multiply_adds`.

    Returns:
        Bytes per image, the image itself included; multiply by the batch size.

    Raises:
        ShapeError: the network does not take images of this shape.

    Example:
        >>> activation_bytes(nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 2)), (6,))
        44
    """
    twin = _twin(net).train()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*twin.parameters(), *twin.buffers())}
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}  # held, so that no address is used again

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            numbers = storage.nbytes() // tensor.element_size()
            width = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
            kept[storage.data_ptr()] = storage, numbers * width

    batch = 2  # batch norm refuses to train on one image when the map is a single pixel
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing),  # a graph that held them would stay
    ):
        _run(twin, _images(image_shape, batch, batch_dim))
    return sum(size for _, size in kept.values()) // batch


def _positions(layer: nn.Module, image: Tensor, output: Tensor) -> int:
    """How often the whole weight is multiplied: once per output position, or per input one when transposed."""
    if isinstance(layer, _TRANSPOSED):
        return image.numel() // layer.in_channels
    if isinstance(layer, _CONVOLUTIONS):
        return output.numel() // layer.out_channels
    return math.prod(output.shape[:-1])


def _twin(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).to("cpu", torch.float32)


def _images(image_shape: Sequence[int], batch: int, batch_dim: int) -> Tensor:
    shape = list(image_shape)
    shape.insert(batch_dim, batch)
    return torch.zeros(shape)


def _run(net: nn.Module, images: Tensor) -> None:
    try:
        net(images)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ShapeError(
            f"{type(net).__name__} does not take images of shape {list(images.shape)}: {reason};"
            " check the channels and the size of the images"
        ) from error
