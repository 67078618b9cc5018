"""From a recipe to a result: training, resuming, scoring, exporting, comparing, planning."""

from coterie.experiment.api import Outcome, train
from coterie.experiment.catalogue import catalogue
from coterie.experiment.comparison import Comparison
from coterie.experiment.doctor import Finding, diagnose
from coterie.experiment.elsewhere import fetch_run
from coterie.experiment.experiment import Experiment
from coterie.experiment.fewshot import fewshot_run
from coterie.experiment.finished import evaluate_run, export_run
from coterie.experiment.pictures import fewshot_pictures
from coterie.experiment.plan import Plan, make_plan
from coterie.experiment.runs import continue_run, new_folder, open_run
from coterie.experiment.transfer import transfer_run

__all__ = [
    "Comparison",
    "Experiment",
    "Finding",
    "Outcome",
    "Plan",
    "catalogue",
    "continue_run",
    "diagnose",
    "evaluate_run",
    "export_run",
    "fetch_run",
    "fewshot_pictures",
    "fewshot_run",
    "make_plan",
    "new_folder",
    "open_run",
    "train",
    "transfer_run",
]
