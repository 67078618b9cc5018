"""Cohorts of peers and their leader."""

from coterie.cohort.cohort import Cohort

__all__ = ["Cohort"]
