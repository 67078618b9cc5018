from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core import METHODS, Batch, Method, Peers, Terms
from coterie.methods.mcl import MutualContrastiveLearning
from coterie.methods.mcl_bank import MutualContrastOverBanks
from coterie.methods.mcl_moco import MutualMomentumContrast
from coterie.methods.mcl_okd import MultiViewContrast
from coterie.testing import CHECKS, check_method, check_resume

CONFIGS: dict[str, tuple[str, Method.Config | None]] = {name: (name, None) for name in METHODS} | {
    f"mcl_okd {' '.join(map(str, knobs.values()))}": ("mcl_okd", MultiViewContrast.Config(**knobs))
    for knobs in (
        {"negatives": "per_sample", "positives": "relax", "num_negatives": 7},
        {"z": "anchor", "graph": "core"},
        {"z": "frozen", "embedding_dim": 5},
    )
}
CONFIGS |= {
    f"{name} {' '.join(map(str, knobs.values()))}": (name, METHODS[name].Config(**knobs))
    for name, knobs in (
        ("dml", {"target": "ensemble", "detach": False, "target_offset": 1e-7}),
        ("kdcl", {"target": "naive", "per": "batch"}),
        ("kdcl", {"target": "linear"}),
        ("kdcl", {"target": "linear", "per": "batch", "views": "shared"}),
        ("kdcl", {"target": "general"}),
        ("kdcl", {"target": "mean"}),
        ("one", {"ramp_epochs": 0, "target_offset": 1e-7}),
        ("okddip", {"ramp_epochs": 0, "detach": "values", "ensemble": "all"}),
        ("codistillation", {"interval": 1, "burn_in": 0}),
        ("codistillation", {"interval": 2, "burn_in": 1, "burn_in_unit": "steps", "divergence": "kl"}),
        ("pcl", {"ramp_epochs": 0, "views": "shared", "momentum": 0.5}),
    )
}

CONFIGS |= {
    "mcl with flags": (
        "mcl",
        MutualContrastiveLearning.Config(
            icl_self_pair=True, soft_include_self=False, samples_per_class=0, ensemble="off", embedding_dim=5
        ),
    ),
    "mcl_bank per_sample": (
        "mcl_bank",
        MutualContrastOverBanks.Config(negatives="per_sample", pos_k=3, neg_k=7, icl_self_pair=False, ensemble="all"),
    ),
    "mcl_moco short queue": (
        "mcl_moco",
        MutualMomentumContrast.Config(queue_length=5, head="two_layer", momentum=0.5, task=1.0),
    ),
}


def named(check: Any) -> Any:
    return pytest.param(check, id=check.__name__, marks=pytest.mark.slow if check is check_resume else ())


@pytest.mark.parametrize("check", [*map(named, CHECKS)])
@pytest.mark.parametrize("case", CONFIGS)
def test_method_keeps_the_contract(case: str, check: Any) -> None:
    check(*CONFIGS[case])


class Broken(Method):
    """Cross-entropy of all peers, and one fault."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        fault: str = ""

    config: Config

    def __init__(self, config: Config, facts: Any) -> None:
        super().__init__(config, facts)
        self.seen = torch.zeros(())
        self.epochs = 0

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        fault = self.config.fault
        kept = peers[1:] if fault == "one peer is not taught" else peers
        loss = torch.stack([F.cross_entropy(peer.logits, batch.labels) for peer in kept]).sum()
        return Terms().add("task", self.spoil(loss, batch) if fault else loss)

    def spoil(self, loss: Tensor, batch: Batch) -> Tensor:
        fault, in_bfloat16 = self.config.fault, torch.is_autocast_enabled("cpu")
        spoilt = {
            "reads a number": lambda: loss * (1.0 if loss.item() > 0 else 2.0),
            "reads a list": lambda: loss * len(batch.labels.tolist()),
            "dynamic shape": lambda: loss + batch.views[0][batch.labels == 0].sum() * 0,
            "keeps state to itself": lambda: self.count(loss),
            "keeps state of frozen peers to itself": lambda: self.count(loss) if self.facts.frozen else loss,
            "keeps state of bfloat16 to itself": lambda: self.count(loss) if in_bfloat16 else loss,
            "keeps state of epochs to itself": lambda: loss * (1 + self.epochs),
            "global randomness": lambda: loss * (1 + torch.rand(())),
            "not a number": lambda: loss + torch.nan,
            "not a number later on in bfloat16": lambda: loss + torch.nan if in_bfloat16 and batch.step > 1 else loss,
            "lone label": lambda: loss / ((batch.labels[:, None] == batch.labels).sum() - batch.size),
            "half precision": lambda: loss.bfloat16(),
        }
        return spoilt[fault]() if fault in spoilt else loss

    def count(self, loss: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return loss * (1 + self.seen)

    def after_epoch(self, held_out: Any) -> None:
        self.epochs += self.config.fault == "keeps state of epochs to itself"


FAULTS = {
    "one peer is not taught": "no gradient reaches peer 0",
    "reads a number": "_local_scalar_dense",
    "reads a list": "tolist",
    "dynamic shape": "with a mask|nonzero",
    "keeps state to itself": "a continued run differs",
    "keeps state of frozen peers to itself": r"a continued run differs; .* frozen peers \[0\], float32",
    "keeps state of bfloat16 to itself": r"a continued run differs; .* frozen peers \[\], bfloat16",
    "keeps state of epochs to itself": "a continued run differs",
    "not a number later on in bfloat16": r"a total is not finite; .* bfloat16",
    "global randomness": "float32 and float64 differ|two runs of one seed differ",
    "not a number": "term 'task' is",
    "lone label": "not finite",
    "half precision": "the total is",
}


@pytest.fixture(name="broken")
def register_broken() -> Iterator[str]:
    METHODS.add("broken", Broken)
    yield "broken"
    METHODS._entries.pop("broken")


def test_a_sound_method_from_elsewhere_passes(broken: str) -> None:
    check_method(broken)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(broken: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_method(broken, Broken.Config(fault=fault))
