"""What is done with trained peers: scoring and exporting."""

from coterie.evaluation.classify import classify, peer_logits

__all__ = ["classify", "peer_logits"]
