"""A method of your own is one file: coterie train digits/mcl_okd --plugin new_method.py method=class_centres."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coterie import METHODS, Batch, CoterieError, Facts, Method, Peers, Terms
from coterie.losses.logits import summed_cross_entropy
from coterie.nets.heads import LinearHead


@dataclass
class Centres:
    """A memory, one moving mean of embeddings per class `[K, D]`: checkpoints keep what `state` returns."""

    rows: Tensor

    def state(self) -> dict[str, Tensor]:  # noqa: D102
        return {"rows": self.rows}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        if state["rows"].shape != self.rows.shape:
            raise CoterieError(f"{len(state['rows'])} class centres saved and {len(self.rows)} here; start a new run")
        self.rows = state["rows"].to(self.rows)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:  # noqa: D102
        self.rows = change(self.rows)


@METHODS.register("class_centres")
class ClassCentres(Method):
    """Cross-entropy plus `1 - cos` between each peer's embedding and the centre of its class over all peers."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Factor of the term, set with `method.weight=0.5`."""

        weight: float = 0.1

    config: Config
    classes: Tensor

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.heads = nn.ModuleList(LinearHead(size, 32) for size in facts.embedding_dims)
        self.register_buffer("classes", torch.arange(facts.num_classes)[:, None], persistent=False)
        self.centres = Centres(torch.zeros(facts.num_classes, 32))
        self.memories = {"centres": self.centres}

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` and `centre`, with gradient to all peers and heads."""
        rows = self.centres.rows[batch.labels]
        cosines = [(head(p.embedding) * rows).sum(dim=1).mean() for head, p in zip(self.heads, peers, strict=True)]
        terms = Terms().add("task", summed_cross_entropy([peer.logits for peer in peers], batch.labels))
        return terms.add("centre", 1 - torch.stack(cosines).mean(), self.config.weight)

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Move the centres of the classes in the batch towards the mean embedding of all peers."""
        mean = torch.stack([head(p.embedding) for head, p in zip(self.heads, peers, strict=True)]).mean(dim=0)
        hits = (batch.labels == self.classes).to(mean)  # [K, B], without asking the device for a number
        moved = torch.lerp(nn.functional.normalize(hits @ mean), self.centres.rows, 0.9)
        self.centres.rows = torch.where(hits.any(dim=1, keepdim=True), moved, self.centres.rows)
