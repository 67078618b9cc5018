"""Everything a run must keep, gathered into a snapshot and put back: the list that makes resume exact."""

from __future__ import annotations

import torch

from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue
from coterie.engine.loop import Clock, Run
from coterie.engine.mesh import part_of
from coterie.engine.meters import Meters
from coterie.engine.optim_state import (
    by_owner,
    joined_owners,
    optimizer_tensors,
    optimizer_values,
    parameter_names,
    restore_optimizer,
)
from coterie.engine.partner_state import partner_sections, partner_values, restore_partners
from coterie.engine.rng_state import restore_rng, rng_tensors, rng_values
from coterie.engine.snapshot import (
    Snapshot,
    as_list,
    as_mapping,
    memory_tensors,
    module_tensors,
    peer_tensors,
    restore_memories,
    restore_module,
    restore_peers,
)


def capture(run: Run, meters: Meters) -> Snapshot:
    """Gather the state of a run between two batches; tensors are not copied.

    Args:
        run: its cohort, method, optimiser, scaler and clock.
        meters: the row of the log that is still open.

    Returns:
        Sections `peer0..`, `method`, `memory`, `peer0.optim..`, `method.optim`, `meters`, `rng`, `partner0..`, and
        plain values.
    """
    cohort, method = run.objective.cohort, run.objective.method
    names = parameter_names(cohort, method)
    sums, terms = meters.state()
    return Snapshot(
        tensors={
            **peer_tensors(cohort),
            "method": module_tensors(method),
            "memory": memory_tensors(method.memories),
            **by_owner(optimizer_tensors(run.stepper.optimizer, names)),
            "meters": sums,
            "rng": rng_tensors(),
            **partner_sections(run.objective.partners),
        },
        values={
            "epoch": run.clock.epoch,
            "position": run.clock.position,
            "optimizer": optimizer_values(run.stepper.optimizer, names),
            "rate": run.stepper.rate,
            "scaler": run.precision.scaler.state_dict(),
            "terms": terms,
            "rng": rng_values(),
            **partner_values(run.objective.partners),
        },
    )


def restore(run: Run, meters: Meters, snapshot: Snapshot, device: torch.device) -> None:
    """Put the state of a snapshot back into a freshly built run.

    Args:
        run: built from the same recipe.
        meters: of the run.
        snapshot: what `capture` returned, on the CPU.
        device: where the run computes.

    Raises:
        CheckpointError: networks, heads, memories, optimiser or method are not those of the checkpoint.
    """
    method = run.objective.method
    snapshot = part_of(snapshot, run.objective.cohort)
    restore_peers(run.objective.cohort, snapshot)
    restore_module(method, snapshot.section("method"), what="the method")
    restore_memories(method.memories, snapshot.section("memory"))
    names = parameter_names(run.objective.cohort, method)
    state = joined_owners(snapshot.tensors)
    restore_optimizer(run.stepper.optimizer, names, state, snapshot.value("optimizer"))
    restore_place(run, snapshot)
    terms = [str(name) for name in as_list(snapshot.value("terms"))]
    meters.load_state(snapshot.section("meters"), terms, device)


def restore_place(run: Run, snapshot: Snapshot) -> None:
    """Put back what does not depend on the cohort: clock, learning rate, scaler, global generators and partners.

    Raises:
        CheckpointError: a value is missing or is not a number.
    """
    run.precision.scaler.load_state_dict(dict(as_mapping(snapshot.value("scaler"))))
    run.stepper.rate = _number(snapshot.value("rate"))
    run.clock = Clock(epoch=int(_number(snapshot.value("epoch"))), position=int(_number(snapshot.value("position"))))
    restore_rng(snapshot.section("rng"), snapshot.value("rng"))
    restore_partners(run.objective.partners, snapshot)


def _number(value: JsonValue) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"the checkpoint has {value!r} where a number must stand; use an older checkpoint")
    return value
