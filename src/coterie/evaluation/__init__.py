"""What is done with trained peers: scoring, probing and exporting."""

from coterie.evaluation.classify import classify, peer_embeddings, peer_logits
from coterie.evaluation.embed import embed
from coterie.evaluation.fewshot import EpisodeAccuracies, EpisodeScores, draw_episodes, score_episodes
from coterie.evaluation.probe import Features, ProbeScores, probe_features

__all__ = [
    "EpisodeAccuracies",
    "EpisodeScores",
    "Features",
    "ProbeScores",
    "classify",
    "draw_episodes",
    "embed",
    "peer_embeddings",
    "peer_logits",
    "probe_features",
    "score_episodes",
]
