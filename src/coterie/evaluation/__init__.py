"""What is done with trained peers: scoring and exporting."""

from coterie.evaluation.classify import classify

__all__ = ["classify"]
