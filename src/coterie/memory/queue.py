"""A queue of embeddings: the newest replace the oldest, so that many batches are at hand as negatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import draws
from coterie.core.errors import CheckpointError, ConfigError, ShapeError


class EmbeddingQueue:
    """The last Q embeddings of every peer.

    Fresh rows have random directions, a function of the seed. Nothing waits for the device: the place of the oldest
    row is kept there.

    Args:
        num_peers: M.
        length: Q, embeddings kept of each peer.
        dim: D of the embeddings.
        seed: key of the fresh rows.

    Attributes:
        rows: `[M, Q, D]` float32 of length 1, constants for every gradient.
        oldest: `[]` int64, the row that is replaced next.

    Raises:
        ConfigError: the length is not positive.

    Example:
        >>> queue = EmbeddingQueue(1, 3, 2)
        >>> for number in (1.0, 2.0):
        ...     queue.push(torch.full((1, 2, 2), number))
        >>> queue.rows[0, :, 0], queue.oldest
        (tensor([2., 1., 2.]), tensor(1))

    Reference:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020, arXiv:1911.05722.
    """

    def __init__(self, num_peers: int, length: int, dim: int, *, seed: int = 0) -> None:
        if length < 1:
            raise ConfigError(f"a queue of {length} embeddings holds nothing; give a length of at least 1")
        own = torch.Generator().manual_seed(draws.mix(seed, "queue"))
        self.rows = F.normalize(torch.randn(num_peers, length, dim, generator=own), dim=-1)
        self.oldest = torch.zeros((), dtype=torch.int64)

    @property
    def mebibytes(self) -> float:
        """Size of all rows in MiB."""
        return self.rows.numel() * self.rows.element_size() / 2**20

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Replace the oldest rows; of more than Q embeddings the last Q count.

        Args:
            embeddings: `[M, B, D]`; no gradient flows.

        Raises:
            ShapeError: they are of other peers or another size than the rows.
        """
        peers, length, dim = self.rows.shape
        if embeddings.dim() != 3 or embeddings.shape[::2] != (peers, dim):
            raise ShapeError(
                f"embeddings {tuple(embeddings.shape)} for a queue {tuple(self.rows.shape)}; give [M, B, D]"
            )
        newest = embeddings[:, -length:]
        count = newest.shape[1]
        places = (self.oldest + torch.arange(count, device=self.rows.device)) % length
        self.rows.index_copy_(1, places, newest.to(self.rows.dtype))
        self.oldest.add_(count).remainder_(length)

    def state(self) -> dict[str, Tensor]:
        """The rows `[M, Q, D]` and the place of the oldest `[]`, not copied."""
        return {"rows": self.rows, "oldest": self.oldest}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over another queue, keeping device and dtype of this one.

        Raises:
            CheckpointError: it is of other peers, of another length or embedding size, or incomplete.
        """
        for name, own in self.state().items():
            if name not in state or state[name].shape != own.shape:
                found = list(state[name].shape) if name in state else "missing"
                raise CheckpointError(
                    f"{name!r} of the saved queue is {found} and must be {list(own.shape)}; continue with the same"
                    " cohort and method, or start a new run"
                )
            own.copy_(state[name])

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a move to another device or dtype."""
        self.rows, self.oldest = change(self.rows), change(self.oldest)
