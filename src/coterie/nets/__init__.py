"""Networks: every file of this folder registers a family; any other module joins through `TappedNet`."""

import sys

from coterie.core.registry import import_siblings
from coterie.nets.base import NETS, StagedNet, Tappable
from coterie.nets.tapped import TappedNet, as_tappable, find_head
from coterie.nets.vision import register_in_timm

import_siblings(sys.modules[__name__])

__all__ = ["NETS", "StagedNet", "Tappable", "TappedNet", "as_tappable", "find_head", "register_in_timm"]
