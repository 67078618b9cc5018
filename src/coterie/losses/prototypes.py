"""Few-shot losses: an image belongs to the class whose support it is most like.

Embeddings of an episode are `[..., W, S, D]`: W classes (ways) with S images each. The first images of a class are its
support, the others its queries; leading dimensions are any number of episodes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.logits import at_least_float32


def split_episode(embeddings: Tensor, ways: int, shots: int) -> tuple[Tensor, Tensor]:
    """Cut the embeddings of a batch that is an episode into support and queries.

    Args:
        embeddings: `[B, D]`, sorted by class, the shots of a class before its queries.
        ways: classes W.
        shots: images of each class to learn from, S.

    Returns:
        Support `[W, S, D]` and queries `[W, Q, D]`, in at least float32; gradient passes.

    Raises:
        ShapeError: the batch is no episode of so many ways, or has no queries.

    Example:
        >>> support, queries = split_episode(torch.zeros(12, 5), ways=3, shots=1)
        >>> support.shape, queries.shape
        (torch.Size([3, 1, 5]), torch.Size([3, 3, 5]))
    """
    if embeddings.dim() != 2 or len(embeddings) % ways or len(embeddings) <= ways * shots:
        raise ShapeError(
            f"embeddings are {tuple(embeddings.shape)} and an episode of {ways} ways has [{ways} x (shots + queries),"
            f" D] with more than {shots} images of each; give batches that are episodes"
        )
    by_class = at_least_float32(embeddings).view(ways, -1, embeddings.shape[1])
    return by_class[:, :shots], by_class[:, shots:]


def euclidean_scores(support: Tensor, queries: Tensor) -> Tensor:
    """Score queries by minus the squared Euclidean distance to the mean of each class's support.

    Args:
        support: `[..., W, S, D]`; receives gradient.
        queries: `[..., W, Q, D]`; receives gradient.

    Returns:
        `[..., W * Q, W]`, the queries class by class.

    Example:
        >>> euclidean_scores(torch.tensor([[[0.0]], [[3.0]]]), torch.tensor([[[1.0]], [[3.0]]])).tolist()
        [[-1.0, -4.0], [-9.0, 0.0]]

    Reference:
        Snell, Swersky and Zemel, Prototypical Networks for Few-shot Learning, arXiv:1703.05175, equations 1 and 2.
    """
    prototypes, flat = support.mean(dim=-2), queries.flatten(-3, -2)
    centre = prototypes.detach().mean(dim=-2, keepdim=True)  # distances do not change, and lose fewer digits below
    prototypes, flat = prototypes - centre, flat - centre
    squares = flat.square().sum(dim=-1, keepdim=True) + prototypes.square().sum(dim=-1).unsqueeze(-2)
    return 2 * flat @ prototypes.transpose(-1, -2) - squares


def cosine_scores(support: Tensor, queries: Tensor) -> Tensor:
    """Score queries by the cosine with the mean of each class's support; shapes as `euclidean_scores`."""
    prototypes, flat = support.mean(dim=-2), queries.flatten(-3, -2)
    return F.normalize(flat, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(-1, -2)


def centroid_scores(support: Tensor, queries: Tensor) -> Tensor:
    """Score queries by minus the squared distance to the mean of unit vectors; shapes as `euclidean_scores`."""
    return euclidean_scores(F.normalize(support, dim=-1), F.normalize(queries, dim=-1))


def matching_scores(support: Tensor, queries: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log of the attention that queries pay to the support of each class: softmax over all of it of the cosine.

    Args:
        support: `[..., W, S, D]`; receives gradient.
        queries: `[..., W, Q, D]`; receives gradient.
        temperature: divides the cosines; 1 in the paper.

    Returns:
        `[..., W * Q, W]` log-probabilities, the queries class by class.

    Reference:
        Vinyals et al., Matching Networks for One Shot Learning, arXiv:1606.04080, equations 1 and 2, without full
        context embeddings.
    """
    flat = F.normalize(queries.flatten(-3, -2), dim=-1)
    cosines = flat @ F.normalize(support.flatten(-3, -2), dim=-1).transpose(-1, -2)
    attention = F.log_softmax(cosines / temperature, dim=-1)
    return attention.view(*attention.shape[:-1], *support.shape[-3:-1]).logsumexp(dim=-1)


def query_labels(ways: int, queries: int, device: torch.device | None = None) -> Tensor:
    """Which class of the episode each query is of: `[W * Q]` int64."""
    return torch.arange(ways, device=device).repeat_interleave(queries)


def episode_loss(scores: Tensor) -> Tensor:
    """Cross-entropy of queries over the classes of their episode, averaged over all queries.

    Args:
        scores: `[..., W * Q, W]`, the queries class by class; receives gradient.

    Returns:
        `[]`, in at least float32.

    Example:
        >>> round(float(episode_loss(torch.zeros(6, 3))), 4)
        1.0986
    """
    ways = scores.shape[-1]
    labels = query_labels(ways, scores.shape[-2] // ways, scores.device)
    flat = at_least_float32(scores).flatten(0, -2)
    return F.cross_entropy(flat, labels.expand(scores.shape[:-1]).reshape(-1))
