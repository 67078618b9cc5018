"""Run folders turned into what people read: intervals, verdicts, tables and pictures."""

from coterie.reports.cohort_page import RunRows, cohort_page, read_rows
from coterie.reports.compare import RunResult, compare_runs, curves_of, read_run
from coterie.reports.plots import Series, learning_curves
from coterie.reports.stats import Interval, mean_interval, paired_interval, t_quantile, verdict
from coterie.reports.tables import ComparisonRow, ComparisonTable, plain

__all__ = [
    "ComparisonRow",
    "ComparisonTable",
    "Interval",
    "RunResult",
    "RunRows",
    "Series",
    "cohort_page",
    "compare_runs",
    "curves_of",
    "learning_curves",
    "mean_interval",
    "paired_interval",
    "plain",
    "read_rows",
    "read_run",
    "t_quantile",
    "verdict",
]
