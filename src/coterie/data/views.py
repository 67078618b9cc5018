"""Views of images, made in batches on the device: crop, flip, normalise.

Every random choice is a function of (seed, epoch, view, sample), so an image's views do not depend on the batch, the
worker or the process it is in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.config.schema import DataConfig
from coterie.core import draws
from coterie.data.base import Normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPlan:
    """What is done to uint8 images.

    Attributes:
        normalisation: applied last.
        seed: key of crops and flips, and of random transforms while images are fetched.
        views: independent views V of each image.
        padding: black pixels added on each side before a window of the old size is cut; 0 for no crop.
        flip: mirror half of the images.
        channels_last: lay each view out with its channels last.
    """

    normalisation: Normalisation
    seed: int = 0
    views: int = 1
    padding: int = 0
    flip: bool = False
    channels_last: bool = False

    @classmethod
    def of(
        cls, config: DataConfig, normalisation: Normalisation, *, seed: int, views: int = 1, channels_last: bool = False
    ) -> ViewPlan:
        """Read the plan of a training set off its configuration.

        Args:
            config: its `augment`, `padding` and `flip` decide; of `config.views` and `views` the larger counts.
            normalisation: of the data set.
            seed: of the run.
            views: views that the method needs.
            channels_last: lay each view out with its channels last.

        Returns:
            The plan; with `resized_crop` the cut is left to the fetching of images.
        """
        return cls(
            normalisation=normalisation,
            seed=seed,
            views=max(views, config.views),
            padding=config.padding if config.augment == "crop" else 0,
            flip=config.flip and config.augment != "none",
            channels_last=channels_last,
        )


class ViewMaker:
    """Makes views after a plan, on one device, without waiting for it.

    Args:
        plan: what to do.
        device: where images and constants are.
    """

    def __init__(self, plan: ViewPlan, device: torch.device) -> None:
        self.plan = plan
        mean = torch.tensor(list(plan.normalisation.mean), dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(list(plan.normalisation.std), dtype=torch.float64).view(-1, 1, 1)
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)

    def pad(self, images: Tensor) -> Tensor:
        """Add the plan's padding to `[N, C, H, W]`; black, as torchvision pads images before normalising them."""
        return F.pad(images, [self.plan.padding] * 4) if self.plan.padding else images

    def training(self, padded: Tensor, slots: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Make the views of a batch.

        Args:
            padded: `[n, C, H', W']` uint8 from `pad`.
            slots: `[V, B]` int64, where in `padded` the image of each view is.
            rows: `[B]` int64, rows in the training set: what crops and flips depend on.
            epoch: counted from 0.

        Returns:
            `[V, B, C, H, W]` float32, normalised.
        """
        if not (self.plan.padding or self.plan.flip):
            return self._finish(padded[slots])
        chances = torch.stack([self._chances(rows, epoch, view) for view in range(slots.shape[0])])
        down, right, mirror = chances.unbind(dim=1)
        images = self._windows(padded, slots, down, right) if self.plan.padding else padded[slots]
        if self.plan.flip:
            images = _either((mirror & 1).bool(), images.flip(-1), images).view_as(images)
        return self._finish(images)

    def streamed(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Make the views of a batch that was fetched.

        Args:
            images: `[v, B, C, H, W]`, v being V or 1; uint8, or floating point and then finished.
            rows: `[B]` int64, rows in the training set.
            epoch: counted from 0.

        Returns:
            `[V, B, C, H, W]` float32.
        """
        fetched, size = images.shape[:2]
        if images.is_floating_point():
            return self._lay_out(images.to(torch.float32).expand(self.plan.views, *images.shape[1:]))
        slots = torch.arange(fetched * size, device=images.device).view(fetched, size).expand(self.plan.views, size)
        return self.training(self.pad(images.flatten(0, 1)), slots, rows, epoch)

    def evaluation(self, images: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]` uint8 to float32; floating point images are finished and stay as they are."""
        return self._lay_out(images.to(torch.float32)) if images.is_floating_point() else self._finish(images)

    def _chances(self, rows: Tensor, epoch: int, view: int) -> Tensor:
        key = draws.mix(self.plan.seed, "views", epoch, view)
        return draws.bits(key, torch.stack([3 * rows, 3 * rows + 1, 3 * rows + 2]))

    def _windows(self, padded: Tensor, slots: Tensor, down: Tensor, right: Tensor) -> Tensor:
        places = 2 * self.plan.padding + 1
        height, width = padded.shape[2] - places + 1, padded.shape[3] - places + 1
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # every window of every image, without a copy
        return windows[slots, :, down % places, right % places]

    def _finish(self, images: Tensor) -> Tensor:
        finished = self._lay_out(images).to(torch.float32)
        if self.plan.channels_last:
            lines = finished.movedim(-3, -1)  # as they lie in memory, where a factor for each column is quick
            scale, shift = (values.flatten().repeat(lines.shape[-2]) for values in (self._scale, self._shift))
            lines.view(*lines.shape[:-2], -1).mul_(scale).add_(shift)
            return finished
        return finished.mul_(self._scale).add_(self._shift)

    def _lay_out(self, images: Tensor) -> Tensor:
        if not self.plan.channels_last:
            return images.contiguous()
        flat = images.flatten(0, -4) if images.dim() == 5 else images
        return flat.contiguous(memory_format=torch.channels_last).view_as(images)


def _either(choice: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Take each image `[C, H, W]` of `[V, B, C, H, W]` from the first where `choice` `[V, B]` says so, else the second.

    Pixels are moved up to eight at a time, as integers: a choice costs by elements, not by bytes.
    """
    first, second = first.flatten(2), second.flatten(2)
    size = first.shape[2] * first.element_size()
    word = next(kind for kind in (torch.int64, torch.int32, torch.int16, torch.int8) if size % kind.itemsize == 0)
    return torch.where(choice[..., None], first.view(word), second.view(word)).view(first.dtype)
