"""Between epochs: how alike the peers are, and how much each term weighs in the loss and in the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coterie.core.across import in_order
from coterie.core.shards import is_shard, whole_of
from coterie.core.types import Batch, Peers, Terms
from coterie.core.world import averaged, whole, world
from coterie.engine.loop import Run
from coterie.losses.logits import at_least_float32
from coterie.metrics import diversity

_IMAGES = 256
_EVERY = 200  # batches: a probe costs about as much as a few of them


class Diagnostics:
    """Watcher that looks at one batch of the epoch that has ended, in evaluation mode, and changes nothing.

    A probe costs one forward pass and one backward pass per term. It is made after an epoch in which the number of
    batches passed a multiple of 200, and after the last, so that short epochs do not pay for it each time.

    Args:
        emit: receives the row: `kind`, `epoch`, `step`, `agreement`, `divergence`, `similarity` (`M x M`), `spread`,
            `loss_share` and `gradient_share` by term, `alarms` in words.
    """

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self.emit = emit

    def on_step(self, run: Run, peers: Peers, terms: Terms, batch: Batch) -> None:
        """Nothing between epochs."""

    def on_epoch(self, run: Run) -> None:
        """Probe and report, when it is time."""
        before = run.batches - run.loader.batches_per_epoch
        if run.batches // _EVERY == before // _EVERY and run.clock.epoch + 1 < run.epochs:
            return
        batch = next(iter(run.loader.batches(run.clock.epoch)))
        if run.objective.method.requirements().episode is None:  # a part of an episode is none
            batch = _first(batch, _IMAGES)
        run.objective.eval()
        with torch.enable_grad(), run.precision.autocast():
            peers, terms = run.objective(run.objective.prepare(batch))
        found = diversity([peer.logits for peer in peers], [peer.embedding for peer in peers])
        self.emit(
            {
                "kind": "diagnostics",
                "epoch": run.clock.epoch,
                "step": run.batches,
                "agreement": found.agreement.tolist(),
                "divergence": found.divergence.tolist(),
                "similarity": found.similarity.tolist(),
                "spread": found.spread.tolist(),
                "loss_share": _shares({term.name: (term.weight * term.value).detach().abs() for term in terms}),
                "gradient_share": _shares(_gradient_norms(run, terms)),
                "alarms": found.alarms(),
            }
        )
        run.objective.train()


def _first(batch: Batch, count: int) -> Batch:
    """The first images of a batch, spread over the ranks anew."""
    count -= count % world().data.size
    views = batch.views
    if world().data.size > 1 and batch.size > count:
        rows = whole(views.transpose(0, 1))[:count].transpose(0, 1)
        views = rows[:, world().share(torch.arange(count, device=rows.device))]
    return replace(batch, views=views[:, :count], labels=batch.labels[:count], indices=batch.indices[:count])


def _gradient_norms(run: Run, terms: Terms) -> dict[str, Tensor]:
    return {term.name: _gradient_norm(run, term.weight * term.value) for term in terms}


def _gradient_norm(run: Run, value: Tensor) -> Tensor:
    own: list[Tensor] = []
    common: list[Tensor] = []
    found = _gradients(run.objective.trainable(), value) if value.requires_grad else {}
    for name, grad in found.items():
        (common if name.startswith("method.") else own).append(whole_of(at_least_float32(grad).square().sum()))
    squares = [*in_order(own, at_least_float32(value.detach())), *common]
    return torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())


def _gradients(named: Mapping[str, Tensor], value: Tensor) -> dict[str, Tensor]:
    """Gradients of a value, averaged over ranks, of those parameters that it depends on."""
    parameters = list(named.values())
    if any(map(is_shard, parameters)):
        grads = _left_by_backward(parameters, value)
    else:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    found = {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}
    own = {name: grad for name, grad in found.items() if not is_shard(grad)}
    return found | dict(zip(own, averaged(list(own.values())), strict=True))


def _left_by_backward(parameters: Sequence[Tensor], value: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of parameters in parts: what averages them listens to backward passes only."""
    value.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    grads = tuple(parameter.grad for parameter in parameters)
    for parameter in parameters:
        parameter.grad = None
    return grads


def _shares(values: dict[str, Tensor]) -> dict[str, float]:
    numbers = torch.stack([value.double() for value in values.values()])
    shares = (numbers / numbers.sum().clamp(min=1e-30)).tolist()
    return dict(zip(values, shares, strict=True))
