"""Batched crops, flips and normalisation against one image at a time with Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coterie.config.schema import DataConfig
from coterie.core import draws
from coterie.data import ArraySplit, Normalisation, ShuffledOrder, ViewPlan, make_loader
from coterie.data.views import ViewMaker

NORMALISATION = Normalisation(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))


def plan(**changes: Any) -> ViewPlan:
    return ViewPlan(**{"normalisation": NORMALISATION, "seed": 7, "padding": 2, "flip": True} | changes)


def make(split: ArraySplit, chosen: ViewPlan, rows: list[int], epoch: int = 0) -> Tensor:
    maker = ViewMaker(chosen, torch.device("cpu"))
    where = torch.tensor(rows)
    return maker.training(maker.pad(split.images), where.expand(chosen.views, -1), where, epoch)


def by_hand(image: Tensor, row: int, epoch: int, view: int, chosen: ViewPlan) -> Tensor:
    """Pillow pads, crops and mirrors; the arithmetic of normalising is done in float64."""
    key = draws.mix(chosen.seed, "views", epoch, view)
    down, right, mirror = draws.bits(key, torch.tensor([3 * row, 3 * row + 1, 3 * row + 2])).tolist()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if chosen.padding:
        side, places = image.shape[-1], 2 * chosen.padding + 1
        left, top = right % places, down % places
        picture = ImageOps.expand(picture, border=chosen.padding, fill=0)
        picture = picture.crop((left, top, left + side, top + side))
    if chosen.flip and mirror & 1:
        picture = ImageOps.mirror(picture)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float64) / 255
    mean, std = (
        torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in (NORMALISATION.mean, NORMALISATION.std)
    )
    return (pixels - mean) / std


@pytest.mark.parametrize("changes", [{}, {"flip": False}, {"padding": 0}, {"padding": 0, "flip": False}, {"views": 3}])
def test_views_equal_pillow(small_split: ArraySplit, changes: dict[str, Any]) -> None:
    chosen, rows = plan(**changes), list(range(0, 48, 2))
    views = make(small_split, chosen, rows, epoch=4)
    assert views.shape == (chosen.views, 24, 3, 8, 8)
    assert views.dtype == torch.float32
    for view in range(chosen.views):
        for place, row in enumerate(rows):
            expected = by_hand(small_split.images[row], row, 4, view, chosen)
            torch.testing.assert_close(views[view, place].double(), expected, atol=2e-6, rtol=0)


def test_an_image_looks_the_same_in_any_batch(small_split: ArraySplit) -> None:
    together = make(small_split, plan(views=2), list(range(48)))
    apart = make(small_split, plan(views=2), [31, 5])
    assert torch.equal(apart, together[:, [31, 5]])


def test_views_epochs_and_seeds_differ(small_split: ArraySplit) -> None:
    rows = list(range(48))
    views = make(small_split, plan(views=2), rows)
    assert (views[0] != views[1]).flatten(1).any(dim=1).float().mean() > 0.8
    assert not torch.equal(views, make(small_split, plan(views=2), rows, epoch=1))
    assert not torch.equal(views, make(small_split, plan(views=2, seed=8), rows))


def test_the_first_view_does_not_depend_on_how_many_there_are(small_split: ArraySplit) -> None:
    assert torch.equal(make(small_split, plan(), [1, 2])[0], make(small_split, plan(views=4), [1, 2])[0])


def test_windows_and_flips_are_uniform() -> None:
    image = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    split = ArraySplit(image.expand(9000, 1, 4, 4), torch.zeros(9000, dtype=torch.int64))
    chosen = ViewPlan(normalisation=Normalisation(mean=(0.0,), std=(1 / 255,)), padding=1, flip=True)
    seen, counts = make(split, chosen, list(range(9000)))[0].unique(dim=0, return_counts=True)
    assert len(seen) == 2 * 3 * 3
    assert ((counts - 500.0) ** 2 / 500).sum() < 45  # 17 degrees of freedom, p > 1e-4, fixed draws


def test_channels_last_changes_the_layout_only(small_split: ArraySplit) -> None:
    rows = [3, 1, 4, 15]
    plain, last = make(small_split, plan(views=2), rows), make(small_split, plan(views=2, channels_last=True), rows)
    assert torch.equal(plain, last)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in last)
    assert all(view.is_contiguous() for view in plain)


def test_fetched_images_get_the_views_of_stored_ones(small_split: ArraySplit) -> None:
    maker, rows = ViewMaker(plan(views=3), torch.device("cpu")), torch.tensor([9, 2, 40])
    streamed = maker.streamed(small_split.images[rows][None], rows, epoch=2)
    assert torch.equal(streamed, make(small_split, plan(views=3), rows.tolist(), epoch=2))


def test_floating_point_images_are_finished() -> None:
    images = torch.randn(1, 5, 3, 8, 8)
    views = ViewMaker(plan(views=2), torch.device("cpu")).streamed(images, torch.arange(5), epoch=0)
    assert torch.equal(views, images.expand(2, 5, 3, 8, 8))


@pytest.mark.parametrize(
    ("config", "padding", "flip"),
    [
        (DataConfig(), 4, True),
        (DataConfig(augment="none"), 0, False),
        (DataConfig(augment="resized_crop"), 0, True),
        (DataConfig(padding=2, flip=False), 2, False),
    ],
)
def test_the_plan_follows_the_configuration(config: DataConfig, padding: int, flip: bool) -> None:
    chosen = ViewPlan.of(config, NORMALISATION, seed=1, views=2)
    assert (chosen.padding, chosen.flip, chosen.views, chosen.seed) == (padding, flip, 2, 1)


def test_more_views_than_the_method_needs() -> None:
    assert ViewPlan.of(DataConfig(views=3), NORMALISATION, seed=1, views=2).views == 3


class _Watch(TorchDispatchMode):
    """Lists the operations that make the host wait for a device, or have a shape that only the device knows."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "index.Tensor_bool")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in self.WAITING):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_batch_waits_for_the_device(small_split: ArraySplit) -> None:
    loader = make_loader(small_split, order=ShuffledOrder(48, 12, 0), plan=plan(views=2))
    with _Watch() as watch:
        count = sum(1 for _ in loader.batches(0))
    assert count == 4
    assert watch.seen == []
    with _Watch() as watch:
        torch.ones(2).sum().item()
    assert watch.seen  # the watch does see a wait


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_no_batch_waits_for_a_gpu(small_split: ArraySplit) -> None:
    order = ShuffledOrder(48, 12, 0)
    loader = make_loader(small_split, order=order, plan=plan(views=2), device="cuda")
    batches = loader.batches(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = make_loader(small_split, order=order, plan=plan(views=2)).batches(0, start=1)
    for batch, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(batch.views.cpu(), wanted.views, atol=1e-6, rtol=1e-6)
