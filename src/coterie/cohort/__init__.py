"""Cohorts of peers and their leader, and the teachers beside them."""

from coterie.cohort.banked import BankedLink, draw_candidates
from coterie.cohort.cohort import Cohort
from coterie.cohort.teachers import Teachers
from coterie.cohort.teaching import Link, TeacherMethod

__all__ = ["BankedLink", "Cohort", "Link", "TeacherMethod", "Teachers", "draw_candidates"]
