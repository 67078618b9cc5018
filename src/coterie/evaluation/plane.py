"""Embeddings as points of a plane, for pictures: t-SNE from a fixed start, and what is true of them in all dimensions.

scikit-learn's t-SNE (van der Maaten and Hinton, JMLR 2008) begins at the principal components here, in a fixed sign,
and takes exact gradients, so that equal embeddings give equal pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

_START = 1e-4  # standard deviation of the first coordinates, as scikit-learn has it
_PERPLEXITY = 15.0


def plane(embeddings: Tensor) -> Tensor:
    """Lay embeddings out in a plane: neighbours stay neighbours, distances between groups mean little.

    Args:
        embeddings: `[N, D]`, N of at least 3; a few hundred, since time grows with the square of N.

    Returns:
        `[N, 2]` float32 on the CPU.

    Example:
        >>> plane(torch.arange(12.0).view(6, 2)).shape
        torch.Size([6, 2])
    """
    from sklearn.manifold import TSNE  # a second to import, for this only

    values = embeddings.detach().cpu().double()
    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    model = TSNE(perplexity=perplexity, init=_principal(values).numpy(), method="exact", random_state=0, n_jobs=1)
    return torch.from_numpy(model.fit_transform(values.numpy())).float()


def neighbour_share(embeddings: Tensor, labels: Tensor) -> float:
    """Percentage of images whose nearest other image, by Euclidean distance of embeddings, is of their class.

    Args:
        embeddings: `[N, D]`.
        labels: `[N]` int64.

    Example:
        >>> neighbour_share(torch.tensor([[0.0], [1.0], [5.0], [5.5]]), torch.tensor([0, 0, 1, 0]))
        50.0
    """
    distances = torch.cdist(embeddings.double(), embeddings.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.fill_diagonal_(torch.inf).argmin(dim=1)
    return 100 * float((labels[nearest] == labels).double().mean())


def _principal(values: Tensor) -> Tensor:
    """First two principal components `[N, 2]`, the largest entry of each direction positive."""
    centred = values - values.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    first = torch.zeros(2, values.shape[1], dtype=values.dtype)
    first[: len(directions)] = directions[:2]
    signs = first.gather(1, first.abs().argmax(dim=1, keepdim=True)).sign()
    scores = centred @ (first * signs).T
    return _START * scores / scores[:, :1].std().clamp(min=1e-12)
