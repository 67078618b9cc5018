"""The baseline: peers that learn side by side and never hear of each other."""

from __future__ import annotations

from coterie.core import METHODS, Batch, Method, Needs, Peers, Terms, logits_of
from coterie.losses.logits import summed_cross_entropy


@METHODS.register("independent")
class Independent(Method):
    """Cross-entropy with the labels, summed over the peers.

    With one peer this is plain training; with separate peers their ensemble is the one that costs nothing but time;
    with shared stages it is the branch-based baseline of the papers.
    """

    needs = Needs()

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """One term, `task`, with gradient to every peer's logits."""
        return Terms().add("task", summed_cross_entropy(logits_of(peers), batch.labels))
