"""Cohorts of peers and their leader, and the teachers beside them."""

from coterie.cohort.cohort import Cohort
from coterie.cohort.teachers import Teachers
from coterie.cohort.teaching import Link, TeacherMethod

__all__ = ["Cohort", "Link", "TeacherMethod", "Teachers"]
