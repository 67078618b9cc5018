from __future__ import annotations

import pytest
import torch

from coterie.core import Batch, PeerOutput, ShapeError, Terms


def batch() -> Batch:
    rows = torch.arange(4)
    return Batch(
        views=torch.zeros(2, 4, 3, 5, 5), labels=rows % 2, indices=rows, epoch=torch.tensor(1), step=torch.tensor(7)
    )


def test_a_batch_knows_its_size_and_moves_as_one() -> None:
    first = batch()
    assert first.size == 4
    moved = first.on(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in ("views", "labels", "indices", "epoch", "step")} == {"meta"}
    other = first.with_views(torch.ones(1, 4, 3, 5, 5))
    assert other.labels is first.labels
    assert other.views.shape[0] == 1
    with pytest.raises(AttributeError):
        first.labels = other.labels  # type: ignore[misc]


def test_outputs_have_no_stages_unless_asked_for() -> None:
    assert PeerOutput(logits=torch.zeros(2, 3), embedding=torch.zeros(2, 4)).stages == ()


def test_terms_add_up_with_their_weights_and_carry_gradient() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    terms = Terms().add("one", x * 2).add("two", x**2, weight=0.5).add("three", x, weight=torch.tensor(4.0))
    assert [(term.name, term.value.item(), float(term.weight)) for term in terms] == [
        ("one", 6.0, 1.0),
        ("two", 9.0, 0.5),
        ("three", 3.0, 4.0),
    ]
    assert len(terms) == 3
    total = terms.total()
    total.backward()
    assert float(total.detach()) == 6.0 + 4.5 + 12.0
    assert float(x.grad) == 2.0 + 3.0 + 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda terms: terms.add("task", torch.tensor(1.0)), "term 'task' was added twice"),
        (lambda terms: terms.add("map", torch.ones(2)), r"term 'map' has shape \(2,\); reduce it to one number first"),
        (lambda terms: Terms().total(), "a method returned no terms"),
    ],
)
def test_terms_that_cannot_be_added(change: object, message: str) -> None:
    terms = Terms().add("task", torch.tensor(1.0))
    with pytest.raises(ShapeError, match=message):
        change(terms)  # type: ignore[operator]


def test_sums_in_half_precision_keep_the_digits_of_the_terms() -> None:
    terms = Terms().add("large", torch.tensor(1000.0)).add("small", torch.tensor(0.25), weight=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(terms.total()) == 1000.125
