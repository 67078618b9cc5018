"""Slots of partners: who is heard, how far, and what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.cohort.partners import ANY, Adopted, Ageing, PartnerNets, PartnerScores
from coterie.core import Batch
from coterie.core.waiting import noted_waits

AGEING = Ageing(fresh=4, max_age=12)


def net(scale: float = 1.0) -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3))
    nn.init.constant_(made[2].weight, scale)
    return made


def batch(step: int, rows: tuple[int, ...] = (0, 1, 2)) -> Batch:
    views = torch.randn(1, len(rows), 3, 2, 2, generator=torch.Generator().manual_seed(step))
    labels = torch.zeros(len(rows), dtype=torch.int64)
    now = torch.tensor(step)
    return Batch(views=views, labels=labels, indices=torch.tensor(rows), epoch=now * 0, step=now)


def said(job: str, step: int, kind: str = "net") -> Adopted:
    return Adopted(job=job, step=step, blob=f"{job}{step}", net=kind)


def heard(partners: PartnerNets, step: int) -> Batch:
    partners.aim(step)
    return partners(batch(step))


def test_nobody_is_heard_at_first() -> None:
    partners = PartnerNets(2, AGEING, templates={"net": net()})
    assert heard(partners, 0).partners == ()


def test_a_partner_says_what_its_network_says_and_trust_falls_with_age() -> None:
    partners, other = PartnerNets(2, AGEING, templates={"net": net()}), net(0.3)
    partners.adopt(0, said("b", 10), other.state_dict())
    trusts = {}
    for step in (5, 14, 18, 21, 22, 40):
        found = heard(partners, step).partners
        trusts[step] = float(found[0].trust[0]) if found else None
        if found:
            assert torch.equal(found[0].logits, other.eval()(batch(step).views[0]))
            assert found[0].trust.shape == (3,) and not found[0].logits.requires_grad
    assert trusts == {5: 1.0, 14: 1.0, 18: 0.5, 21: 0.125, 22: None, 40: None}


def test_a_network_of_another_kind_takes_the_slot() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Linear(7, 3))
    partners = PartnerNets(1, AGEING, templates={"net": net(), "wide": wide})
    partners.adopt(0, said("b", 1), net(2.0).state_dict())
    partners.adopt(0, said("b", 2, "wide"), wide.state_dict())
    assert torch.equal(heard(partners, 3).partners[0].logits, wide(batch(3).views[0]))
    assert not any(parameter.requires_grad for parameter in partners.parameters())


def test_networks_stay_in_evaluation_mode() -> None:
    partners = PartnerNets(1, AGEING, templates={"net": net()})
    partners.adopt(0, said("b", 1), net(2.0).state_dict())
    partners.train()
    assert not partners.nets[0].training
    before = {name: tensor.clone() for name, tensor in partners.tensors(0).items()}
    heard(partners, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in partners.tensors(0).items())


def test_slots() -> None:
    partners = PartnerNets(2, AGEING, templates={"net": net()})
    assert partners.slot_for("b", 3) == 0
    partners.adopt(0, said("b", 3), net().state_dict())
    assert (partners.slot_for("b", 9), partners.slot_for("c", 9)) == (0, 1)
    partners.adopt(1, said("c", 8), net().state_dict())
    assert partners.slot_for("d", 9) == 0, "the one that is furthest behind makes room"


def test_scores_are_looked_up_by_image() -> None:
    rows = torch.tensor([-1, 1, 0, -1])
    partners = PartnerScores(1, AGEING, rows=rows, shared=2, num_classes=3)
    scores = torch.arange(6.0).reshape(2, 3)
    partners.adopt(0, said("b", 0, ANY), {"logits": scores})
    partners.aim(8)
    (found,) = partners(batch(8, (0, 1, 2))).partners
    assert found.trust.tolist() == [0.0, 0.5, 0.5]
    assert torch.equal(found.logits[1], scores[1]) and torch.equal(found.logits[2], scores[0])


@pytest.mark.parametrize("kind", ["nets", "scores"])
def test_a_step_does_not_wait_for_the_device(kind: str) -> None:
    if kind == "nets":
        partners = PartnerNets(1, AGEING, templates={"net": net()})
        partners.adopt(0, said("b", 1), net().state_dict())
    else:
        partners = PartnerScores(1, AGEING, rows=torch.tensor([0, 1, -1]), shared=2, num_classes=3)
        partners.adopt(0, said("b", 1, ANY), {"logits": torch.zeros(2, 3)})
    partners.aim(2)
    with noted_waits() as found:
        assert partners(batch(2)).partners
    assert not found


def test_scores_that_are_not_finite_are_not_heard() -> None:
    partners, wild = PartnerNets(1, AGEING, templates={"net": net()}), net(3e38)
    partners.adopt(0, said("b", 1), wild.state_dict())
    partners.aim(2)
    asked = batch(2)
    asked.views[0, 1:] *= 0
    (found,) = partners(asked).partners
    assert found.trust.tolist() == [0.0, 1.0, 1.0] and bool(found.logits.isfinite().all())


def test_a_batch_that_was_heard_stays_as_it_is() -> None:
    partners = PartnerNets(1, AGEING, templates={"net": net()})
    partners.adopt(0, said("b", 1), net().state_dict())
    partners.aim(2)
    once = partners(batch(2))
    assert partners(once) is once
