"""References that say what is to be computed in the plainest way, and pay for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def naive_contrast(
    embeddings: Tensor,
    banks: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    pairs: Sequence[tuple[int, int]],
    temperature: float = 0.1,
    z: Literal["batch", "anchor"] = "batch",
    eps: float = 1e-7,
) -> Tensor:
    """The contrastive loss of MCL-OKD as the paper writes it: every ordered pair gathers rows `[B, S + 1, D]` anew.

    Args:
        embeddings: `[M, B, D]` rows of length 1; receives gradient.
        banks: `[M, N, D]`, constants.
        positives: `[B]` int64.
        negatives: `[B, S]` int64.
        pairs: (anchor, bank) of each directed term.
        temperature: divides the inner products.
        z: one constant Z for the scores of a pair (as the published code), or one for each anchor (as the paper).
        eps: as in the published code.

    Returns:
        `[]`, the sum over the pairs of the mean over anchors.

    Reference:
        Yang, An and Xu, Multi-view Contrastive Learning for Online Knowledge Distillation, ICASSP 2021,
        arXiv:2006.04093, equations 6 to 12.
    """
    rows = torch.cat([positives[:, None], negatives], dim=1)
    terms = [_directed(embeddings[a], banks[b], rows, temperature, z, eps) for a, b in pairs]
    return torch.stack(terms).sum()


def _directed(
    anchors: Tensor, bank: Tensor, rows: Tensor, temperature: float, z: Literal["batch", "anchor"], eps: float
) -> Tensor:
    """One term: equations 9 and 10 for the probability of a row, 11 for the loss, `rows` `[B, S + 1]`."""
    num_train, count = bank.shape[0], rows.shape[1] - 1
    gathered = bank.index_select(0, rows.flatten()).view(*rows.shape, -1)
    scores = torch.exp(torch.bmm(gathered, anchors[:, :, None]).squeeze(2) / temperature)
    mean = scores.detach().mean(dim=1, keepdim=True) if z == "anchor" else scores.detach().mean()
    chance, noise = scores / (mean * num_train), count / num_train
    positive = torch.log(chance[:, 0] / (chance[:, 0] + noise + eps))
    negative = torch.log(noise / (chance[:, 1:] + noise + eps)).sum(dim=1)
    return -(positive + negative).mean()


def naive_views(images: Sequence[np.ndarray], *, padding: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Augment a batch image by image, as a data set with transforms does: pad, crop, mirror, scale, normalise.

    Args:
        images: B arrays `[H, W, 3]` uint8.
        padding: black pixels on each side before a window of the old size is cut.
        mean: per channel, of images scaled to `[0, 1]`.
        std: per channel.

    Returns:
        `[B, 3, H, W]` float32.
    """
    chances = np.random.randint(0, 2 * padding + 1, size=(len(images), 2)).tolist()
    mirrors = np.random.rand(len(images)).tolist()
    centre, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    views = [
        naive_view(image, down=down, right=right, mirror=chance < 0.5, padding=padding, mean=centre, std=scale)
        for image, (down, right), chance in zip(images, chances, mirrors, strict=True)
    ]
    return torch.stack(views)


def naive_view(
    image: np.ndarray, *, down: int, right: int, mirror: bool, padding: int, mean: np.ndarray, std: np.ndarray
) -> Tensor:
    """Make one view with Pillow: `[H, W, 3]` uint8 to `[3, H, W]` float32."""
    height, width = image.shape[:2]
    padded = ImageOps.expand(Image.fromarray(image), padding)
    window = padded.crop((right, down, right + width, down + height))
    if mirror:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(window, np.float32) / 255
    return torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1).copy())
