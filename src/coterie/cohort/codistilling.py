"""What the kinds of codistillation share: a pull to others' predictions that begins after a burn-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from coterie.core.errors import ConfigError
from coterie.core.knobs import check_knobs
from coterie.core.method import Facts, Method, Paper
from coterie.core.types import Batch

_BURN_IN = 0.4  # share of the run, as in the example of the one public implementation


class CodistillationMethod(Method):
    """Base of the methods of this paper: a subclass says whose predictions pull, and how.

    Attributes:
        burn_in: epochs or steps before peers hear of others.
    """

    paper = Paper(
        title="Large Scale Distributed Neural Network Training through Online Distillation",
        authors="Anil et al.",
        year=2018,
        venue="ICLR",
        arxiv="1804.03235",
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs that all kinds have.

        Attributes:
            burn_in: epochs or steps before peers hear of others; two fifths of the run by default.
            burn_in_unit: what `burn_in` counts.
            weight: factor of the pull after the burn-in.
            divergence: `cross_entropy` with the others' probabilities, or the `kl` from them, which differs by a
                constant.
        """

        burn_in: int | None = None
        burn_in_unit: Literal["epochs", "steps"] = "epochs"
        weight: float = 1.0
        divergence: Literal["cross_entropy", "kl"] = "cross_entropy"

        def __post_init__(self) -> None:
            check_knobs(self, not_negative=("burn_in", "weight"))
            if self.burn_in is None and self.burn_in_unit == "steps":
                raise ConfigError('method.burn_in_unit="steps" without method.burn_in; give both')

    config: Config

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self.burn_in = int(_BURN_IN * facts.num_epochs) if config.burn_in is None else config.burn_in

    def weight_at(self, batch: Batch, pull: Tensor) -> Tensor:
        """The factor `[]` of a pull: 0 during the burn-in; with its dtype, on its device."""
        clock = batch.epoch if self.config.burn_in_unit == "epochs" else batch.step
        return self.config.weight * (clock >= self.burn_in).to(pull.dtype)
