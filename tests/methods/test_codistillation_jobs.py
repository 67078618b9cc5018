"""Codistillation between jobs as a method: what it takes from partners, when, and beside what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from coterie.core import METHODS, Batch, ConfigError, PartnerOutput
from coterie.core.combined import CombinedConfig, make_method
from coterie.losses.logits import soft_cross_entropy
from coterie.testing import Scene, make_scene

NAME = "codistillation_jobs"
KIND = METHODS[NAME]


def scene(**knobs: object) -> Scene:
    return make_scene(NAME, KIND.Config(**{"burn_in": 0, **knobs}))


def terms_of(made: Scene, batch: Batch) -> dict[str, tuple[float, float]]:
    found = made.method.losses(made.cohort(batch.views), batch)
    return {term.name: (float(term.value.detach()), float(term.weight)) for term in found}


def test_the_pull_is_the_cross_entropy_with_the_mean_of_partners() -> None:
    made = scene()
    said = [torch.randn(made.batch.size, 4) for _ in range(2)]
    ones = torch.ones(made.batch.size)
    batch = replace(made.batch, partners=tuple(PartnerOutput(logits=logits, trust=ones) for logits in said))
    mean = (said[0].softmax(1) + said[1].softmax(1)) / 2
    expected = sum(float(soft_cross_entropy(peer.logits.detach(), mean)) for peer in made.cohort(batch.views))
    value, weight = terms_of(made, batch)["partners"]
    assert value == pytest.approx(expected, rel=1e-5) and weight == 1


def test_trust_scales_the_gradient_image_by_image() -> None:
    made = scene()
    half = made.batch.size // 2
    trust = torch.cat([torch.full((half,), 0.25), torch.zeros(made.batch.size - half)])
    said = torch.randn(made.batch.size, 4)
    own = torch.randn(made.batch.size, 4, requires_grad=True)
    full = own.detach().clone().requires_grad_()
    for leaf, share in ((own, trust), (full, torch.ones(made.batch.size))):
        batch = replace(made.batch, partners=(PartnerOutput(logits=said, trust=share),))
        made.method.pull([leaf], batch).backward()
    assert torch.allclose(own.grad, trust[:, None] * full.grad)


def test_without_partners_training_is_ordinary() -> None:
    made = scene()
    found = terms_of(made, made.batch)
    assert found["partners"][0] == 0
    alone = make_scene("independent")
    assert found["task"][0] == pytest.approx(float(alone.terms().total().detach()), rel=1e-6)


@pytest.mark.parametrize(("unit", "clock"), [("epochs", "epoch"), ("steps", "step")])
def test_burn_in(unit: str, clock: str) -> None:
    made = scene(burn_in=3, burn_in_unit=unit)
    weights = []
    for now in (0, 2, 3, 9):
        batch = replace(made.taught, **{clock: torch.tensor(now)})
        weights.append(terms_of(made, batch)["partners"][1])
    assert weights == [0, 0, 1, 1]


def test_burn_in_is_two_fifths_of_the_run_by_default() -> None:
    assert make_scene(NAME).method.burn_in == 40


def test_kl_is_nothing_for_peers_that_say_what_the_partners_say() -> None:
    made = scene(divergence="kl")
    said = torch.randn(made.batch.size, 4)
    trust = torch.rand(made.batch.size)
    batch = replace(made.batch, partners=(PartnerOutput(logits=said, trust=trust),))
    assert float(made.method.pull([said.clone(), said + 1], batch)) == pytest.approx(0, abs=1e-6)


def test_behind_another_method_only_the_pull_is_added() -> None:
    made = scene()
    parts = (("dml", METHODS["dml"].Config()), (NAME, KIND.Config(burn_in=0)))
    method = make_method(f"dml+{NAME}", CombinedConfig(parts=parts), made.method.facts)
    assert method.requirements().partners
    found = [term.name for term in method.losses(made.cohort(made.batch.views), made.taught)]
    alone = [term.name for term in make_scene("dml").terms()]
    assert found == [*alone, "partners"]


def test_knobs_are_checked() -> None:
    with pytest.raises(ConfigError, match="burn_in_unit"):
        KIND.Config(burn_in_unit="steps")
    with pytest.raises(ConfigError, match="weight"):
        KIND.Config(weight=-1.0)
