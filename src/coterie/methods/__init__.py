"""Methods of online distillation: one file each, registered by name in `coterie.core.METHODS`."""

import sys

from coterie.core.registry import import_siblings

import_siblings(sys.modules[__name__])
