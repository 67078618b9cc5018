"""The figure on augmentation: the batched path against a loader that makes one image at a time."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.naive import naive_views
from benchmarks.sizes import Setting
from benchmarks.table import Row
from benchmarks.timing import Step, ratio, repeated, take_turns, timer_for
from coterie.data import Normalisation, ShuffledOrder, ViewPlan
from coterie.data.views import ViewMaker

NORMALISATION = Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
_PADDING = 4
_BATCHES = 8  # in one measurement


def augmentation(setting: Setting) -> Iterator[Row]:
    """Time crop, flip and normalisation of whole batches, in both layouts, against one image at a time with Pillow."""
    sizes = setting.sizes
    torch.manual_seed(0)
    images = torch.randint(0, 256, (sizes.loaded_images, 3, sizes.image, sizes.image), dtype=torch.uint8)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    order = ShuffledOrder(sizes.loaded_images, sizes.loaded_batch, 0)
    rows = order.rows(0, 0)
    mean, std = NORMALISATION.mean, NORMALISATION.std
    numbers = rows.tolist()

    def one_by_one() -> None:
        naive_views([arrays[row] for row in numbers], padding=_PADDING, mean=mean, std=std).to(setting.device)

    sides: dict[str, Step] = {"naive": one_by_one}
    for layout in ("nchw", "channels_last"):
        plan = ViewPlan(normalisation=NORMALISATION, padding=_PADDING, flip=True, channels_last=layout != "nchw")
        sides[layout] = repeated(_Batched(ViewMaker(plan, setting.device), images, rows, setting.device), _BATCHES)
    times = take_turns(sides, rounds=max(setting.rounds, 7), timer=timer_for(setting.device), warm_up=2)
    for layout in ("nchw", "channels_last"):
        ours = [value / _BATCHES for value in times[layout]]
        yield Row(
            key=f"augment.{layout}",
            title=f"augmentation, {layout.replace('_', ' ')}: one by one / batched",
            measured=ratio(times["naive"], ours),
            limit=6.0,
            at_least=True,
            note=f"{_rate(setting, times['naive'])} / {_rate(setting, ours)} images/s",
        )


class _Batched:
    """Makes the views of one batch with the library."""

    def __init__(self, maker: ViewMaker, images: torch.Tensor, rows: torch.Tensor, device: torch.device) -> None:
        self._maker = maker
        self._padded = maker.pad(images.to(device))
        self._rows = rows.to(device)

    def __call__(self) -> None:
        self._maker.training(self._padded, self._rows[None], self._rows, 0)


def _rate(setting: Setting, times: list[float]) -> str:
    return f"{1e3 * setting.sizes.loaded_batch / median(times):.0f}"
