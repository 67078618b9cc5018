"""Data sets: every registered set is one file of this folder; a user's own joins through `from_dataset`."""

import sys

from coterie.core.registry import import_siblings
from coterie.data.arrays import ArraySplit
from coterie.data.base import DATA, Fetchable, Normalisation, Source, Split
from coterie.data.class_aware import ClassAwareOrder
from coterie.data.datasets import DatasetSplit, from_dataset
from coterie.data.episodes import EpisodeOrder, EpisodeTable
from coterie.data.files import FileSplit
from coterie.data.loaders import ArrayLoader, Loader, evaluation_batches, make_loader
from coterie.data.opening import Opened, open_data
from coterie.data.order import Order, ShuffledOrder
from coterie.data.split import hold_out, limit_per_class, limit_rows
from coterie.data.stream import StreamLoader
from coterie.data.views import ViewPlan

import_siblings(sys.modules[__name__])

__all__ = [
    "DATA",
    "ArrayLoader",
    "ArraySplit",
    "ClassAwareOrder",
    "DatasetSplit",
    "EpisodeOrder",
    "EpisodeTable",
    "Fetchable",
    "FileSplit",
    "Loader",
    "Normalisation",
    "Opened",
    "Order",
    "ShuffledOrder",
    "Source",
    "Split",
    "StreamLoader",
    "ViewPlan",
    "evaluation_batches",
    "from_dataset",
    "hold_out",
    "limit_per_class",
    "limit_rows",
    "make_loader",
    "open_data",
]
