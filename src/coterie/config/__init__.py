"""Knobs and recipes: dataclasses with defaults, and strict loading of the differences."""

from coterie.config.load import find_recipe, load_recipe, recipe_names, resolve, to_toml
from coterie.config.schema import (
    CohortConfig,
    DataConfig,
    ExchangeConfig,
    FewshotConfig,
    NetConfig,
    OptimConfig,
    Recipe,
    TeacherConfig,
    TrainConfig,
)

__all__ = [
    "CohortConfig",
    "DataConfig",
    "ExchangeConfig",
    "FewshotConfig",
    "NetConfig",
    "OptimConfig",
    "Recipe",
    "TeacherConfig",
    "TrainConfig",
    "find_recipe",
    "load_recipe",
    "recipe_names",
    "resolve",
    "to_toml",
]
