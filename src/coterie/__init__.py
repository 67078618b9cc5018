"""Coterie: online knowledge distillation. A cohort of networks learns together; one leader ships."""

__version__ = "0.1.0"
