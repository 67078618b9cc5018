"""What is done with trained peers: scoring, probing and exporting."""

from coterie.evaluation.classify import classify, peer_logits
from coterie.evaluation.embed import embed
from coterie.evaluation.probe import Features, ProbeScores, probe_features

__all__ = ["Features", "ProbeScores", "classify", "embed", "peer_logits", "probe_features"]
