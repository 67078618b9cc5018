"""The memory bank: one embedding per training image and peer, moved a little towards each new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import draws
from coterie.core.allocator import advise_large_pages
from coterie.core.errors import CheckpointError, ShapeError

BankDtype = Literal["float32", "bfloat16"]
"""How bank rows are stored."""

_BLOCK = 1 << 18  # fresh numbers made at a time, few enough for a cache


class MemoryBank:
    """Rows `[M, N, D]`, one bank per peer.

    Fresh rows are uniform in `+-1 / sqrt(D / 3)`, so that their expected length is 1; they are a function of the seed,
    and a peer's do not depend on how many peers there are.

    Args:
        num_peers: M.
        num_rows: N, images of the training set.
        dim: D of the embeddings.
        momentum: share of the old row that stays at an update.
        seed: key of the fresh rows.
        dtype: of the rows: float32, or bfloat16 for half the memory and products several times as fast where the
            device has them. Updates are computed in at least float32.

    Attributes:
        rows: `[M, N, D]` of that dtype, constants for every gradient.

    Example:
        >>> bank = MemoryBank(2, 10, 4)
        >>> bank.update(torch.tensor([3]), torch.ones(2, 1, 4))
        >>> bank.rows[:, 3].norm(dim=1).round(decimals=3).tolist()
        [1.0, 1.0]
    """

    def __init__(
        self,
        num_peers: int,
        num_rows: int,
        dim: int,
        *,
        momentum: float = 0.5,
        seed: int = 0,
        dtype: BankDtype = "float32",
    ) -> None:
        self.momentum = momentum
        self.rows = torch.empty(num_peers, num_rows, dim, dtype=getattr(torch, dtype))
        advise_large_pages(self.rows)
        for peer, rows in enumerate(self.rows):
            _fill(rows.flatten(), (3 / dim) ** 0.5, draws.mix(seed, "bank", peer))

    @property
    def mebibytes(self) -> float:
        """Size of all rows in MiB."""
        return self.rows.numel() * self.rows.element_size() / 2**20

    @torch.no_grad()
    def adopt(self, rows: Tensor, places: Mapping[int, int]) -> None:
        """Take over the banks of peers from another cohort; nothing is done with rows of other sizes.

        Args:
            rows: `[M', N, D]` of that cohort.
            places: place of a peer here to its place there.
        """
        if rows.shape[1:] == self.rows.shape[1:]:
            for here, there in places.items():
                self.rows[here] = rows[there]

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Move rows towards new embeddings: row <- unit(momentum * row + (1 - momentum) * embedding).

        Should an image occur twice, its first embedding counts: in a set order on every device.

        Args:
            indices: `[B]` int64, rows to change.
            embeddings: `[M, B, D]`, one for each peer and row; no gradient flows.

        Raises:
            ShapeError: the embeddings do not fit the bank.
        """
        peers, _, dim = self.rows.shape
        if embeddings.shape != (peers, indices.shape[0], dim):
            raise ShapeError(
                f"embeddings {tuple(embeddings.shape)} for a bank {tuple(self.rows.shape)} and {indices.shape[0]}"
                " indices; give [M, B, D]"
            )
        order = torch.arange(indices.shape[0], device=indices.device)
        first = torch.where(indices[:, None] == indices, order, order.shape[0]).amin(dim=1)
        kept = self.rows.index_select(1, indices)
        exact = torch.promote_types(kept.dtype, torch.float32)
        moved = torch.lerp(embeddings.index_select(1, first).to(exact), kept.to(exact), self.momentum)
        self.rows.index_copy_(1, indices, F.normalize(moved, dim=-1).to(kept.dtype))

    def state(self) -> dict[str, Tensor]:
        """The rows `[M, N, D]`, not copied."""
        return {"rows": self.rows}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over rows of another bank, keeping device and dtype of this one.

        Raises:
            CheckpointError: they are for other peers, another data set or another embedding size.
        """
        rows = state.get("rows")
        if rows is None:
            raise CheckpointError(f"no rows for the memory bank, only {sorted(state)}; start a new run")
        if rows.shape != self.rows.shape:
            raise CheckpointError(
                f"{_difference(rows.shape, self.rows.shape)}: the memory bank was saved as {list(rows.shape)} and is"
                f" {list(self.rows.shape)} here; continue with the same data and cohort, or start a new run"
            )
        self.rows.copy_(rows)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a move to another device or dtype to the rows."""
        self.rows = change(self.rows)


def _difference(given: torch.Size, own: torch.Size) -> str:
    names = ("number of peers changed: M", "data set changed: N", "embedding size changed: D")
    changes = [f"{name} {old} -> {new}" for name, old, new in zip(names, given, own, strict=False) if old != new]
    return ", ".join(changes) or "rows of another number of axes"


def _fill(values: Tensor, bound: float, key: int) -> None:
    """Overwrite a vector with uniform numbers in `[-bound, bound)`, of 65,536 possible ones, a function of the key."""
    source = numpy.random.SFC64(key)  # four numbers of 16 bits for each draw: ten times as fast as uniform_
    for block in torch.split(values, _BLOCK):
        bits = source.random_raw(-(-len(block) // 4)).view(numpy.int16)
        torch.mul(torch.from_numpy(bits)[: len(block)], bound / (1 << 15), out=block)
