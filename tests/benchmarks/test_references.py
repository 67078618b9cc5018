from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.data import NORMALISATION
from benchmarks.naive import naive_contrast, naive_view, naive_views
from torch import Tensor

from coterie.data import ViewPlan
from coterie.data.views import ViewMaker
from coterie.losses.candidates import Candidates
from coterie.losses.contrast import contrast_pairs, nce_embeddings

PEERS, BATCH, ROWS, COUNT, DIM = 3, 5, 40, 12, 6


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("z", ["batch", "anchor"])
@pytest.mark.parametrize("graph", ["full", "core"])
def test_the_naive_loss_and_the_library_agree_in_float64(z: str, graph: str) -> None:
    torch.manual_seed(1)
    embeddings, banks = unit(PEERS, BATCH, DIM).requires_grad_(), unit(PEERS, ROWS, DIM)
    positives, negatives = torch.randperm(ROWS)[:BATCH], torch.randint(ROWS, (BATCH, COUNT))
    pairs = contrast_pairs(PEERS, graph=graph)  # type: ignore[arg-type]
    naive = naive_contrast(embeddings, banks, positives, negatives, pairs=pairs, z=z)  # type: ignore[arg-type]
    (slow,) = torch.autograd.grad(naive, embeddings)
    candidates = Candidates(positives=positives, negatives=negatives)
    ours = nce_embeddings(embeddings, banks, candidates, pairs=pairs, z=z).loss  # type: ignore[arg-type]
    (fast,) = torch.autograd.grad(ours, embeddings)
    assert ours.item() == pytest.approx(naive.item(), rel=1e-12)
    assert torch.allclose(fast, slow, rtol=1e-9, atol=1e-12)


def test_the_naive_loss_is_that_of_the_paper_for_one_pair() -> None:
    """Two anchors on one bank, from equations 9 to 11 with numbers written out."""
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    banks = torch.zeros(2, 3, 2, dtype=torch.float64)
    banks[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    rows = torch.tensor([0, 1]), torch.tensor([[2], [2]])
    loss = naive_contrast(embeddings, banks, *rows, pairs=[(0, 0)], temperature=1.0, z="anchor", eps=0.0)
    e = np.e
    first, second = ([e, 1 / e], [e, 1.0])  # scores of positive and negative of each anchor
    chances = [[score / (np.mean(scores) * 3) for score in scores] for scores in (first, second)]
    terms = [np.log(p / (p + 1 / 3)) + np.log((1 / 3) / (n + 1 / 3)) for p, n in chances]
    assert loss.item() == pytest.approx(-np.mean(terms), rel=1e-12)


def test_one_image_at_a_time_gives_what_the_batched_path_gives() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    maker = ViewMaker(ViewPlan(normalisation=NORMALISATION, padding=2, flip=True), torch.device("cpu"))
    batched = maker.training(maker.pad(images), torch.arange(6)[None], torch.arange(6), 0)[0]
    mean, std = (np.asarray(values, np.float32) for values in (NORMALISATION.mean, NORMALISATION.std))
    places = [(down, right, mirror) for down in range(5) for right in range(5) for mirror in (False, True)]
    for image, view in zip(images, batched, strict=True):
        array = image.permute(1, 2, 0).numpy().copy()
        slow = [
            naive_view(array, down=down, right=right, mirror=mirror, padding=2, mean=mean, std=std)
            for down, right, mirror in places
        ]
        assert sum(torch.allclose(view, one, atol=1e-6) for one in slow) == 1


def test_naive_views_are_normalised_windows_of_every_image() -> None:
    array = np.full((8, 8, 3), 255, np.uint8)
    views = naive_views([array] * 4, padding=2, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert views.shape == (4, 3, 8, 8) and set(views.unique().tolist()) <= {-2.0, 2.0}
