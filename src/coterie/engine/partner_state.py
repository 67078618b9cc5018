"""What a checkpoint holds of partners: a resumed run goes on with those it had adopted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from coterie.cohort.partners import Adopted, Partners
from coterie.core.errors import CheckpointError
from coterie.core.files import JsonValue
from coterie.engine.snapshot import Snapshot, Tensors, as_list, as_mapping, check_tensors


def partner_sections(partners: Partners | None) -> dict[str, Tensors]:
    """Tensors of every slot that is taken, under `partner0`, `partner1`, ...; not copied."""
    if partners is None:
        return {}
    return {f"partner{slot}": dict(partners.tensors(slot)) for slot in partners.taken()}


def partner_values(partners: Partners | None) -> dict[str, JsonValue]:
    """Who is in which slot; nothing without an exchange."""
    if partners is None:
        return {}
    return {"partners": [asdict(said) if said else None for said in partners.known]}


def restore_partners(partners: Partners | None, snapshot: Snapshot) -> None:
    """Put the partners of a snapshot back into their slots.

    Raises:
        CheckpointError: they do not fit the recipe's exchange.
    """
    if partners is None:
        return
    for slot, entry in enumerate(as_list(snapshot.values.get("partners"))):
        if entry is not None:
            _restore(partners, slot, as_mapping(entry), snapshot.section(f"partner{slot}"))


def _restore(partners: Partners, slot: int, entry: Mapping[str, JsonValue], tensors: Mapping[str, Tensor]) -> None:
    job, step, blob, net = (entry.get(key) for key in ("job", "step", "blob", "net"))
    kept = partners.kinds().get(str(net))
    if slot >= len(partners.known) or kept is None or not isinstance(step, int):
        raise CheckpointError(
            f"partner {slot} of the checkpoint, job {job!r} with network {net!r}, has no place in this exchange;"
            " resume with the recipe of the run that wrote it"
        )
    check_tensors(kept, tensors, what=f"partner {slot}, job {job!r},")
    partners.adopt(slot, Adopted(job=str(job), step=step, blob=str(blob), net=str(net)), tensors)
