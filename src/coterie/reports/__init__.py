"""Run folders turned into what people read: intervals, verdicts, tables and pictures."""

from coterie.reports.cohort_page import RunRows, cohort_page, read_rows
from coterie.reports.compare import RunResult, compare_runs, curves_of, read_run
from coterie.reports.embedding_map import Panel, embedding_map
from coterie.reports.episode_page import EpisodePicture, episode_page
from coterie.reports.exchange_lines import exchange_lines
from coterie.reports.plots import Series, learning_curves
from coterie.reports.stats import Interval, mean_interval, paired_interval, t_quantile, verdict
from coterie.reports.tables import ComparisonRow, ComparisonTable, plain

__all__ = [
    "ComparisonRow",
    "ComparisonTable",
    "EpisodePicture",
    "Interval",
    "Panel",
    "RunResult",
    "RunRows",
    "Series",
    "cohort_page",
    "compare_runs",
    "curves_of",
    "embedding_map",
    "episode_page",
    "exchange_lines",
    "learning_curves",
    "mean_interval",
    "paired_interval",
    "plain",
    "read_rows",
    "read_run",
    "t_quantile",
    "verdict",
]
