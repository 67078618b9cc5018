"""What has come of an exchange with other jobs, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def exchange_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell what a job has said, heard and refused: a line for the place and one for each partner.

    Args:
        rows: of kind `exchange`, in the order of the log.

    Example:
        >>> heard = {"fetched": 2, "adopted": 2, "refused": {"hash": 1}, "stale": 0, "step": 60, "age": 40}
        >>> counts = {"published": 5, "errors": 0, "alone": 20, "partners": {"two": heard}}
        >>> for line in exchange_lines([{"step": 100, "counts": counts}]):
        ...     print(line)
        exchange: 5 blobs published, 0 errors, 20 of 100 steps without a partner
        partner two: 2 adopted, last one 40 steps old, 1 refused: hash
    """
    if not rows:
        return []
    counts, steps = rows[-1]["counts"], rows[-1]["step"]
    place = f"exchange: {counts['published']:,} blobs published, {counts['errors']:,} errors"
    lines = [f"{place}, {counts['alone']:,} of {steps:,} steps without a partner"]
    return lines + [f"partner {job}: {_partner(found)}" for job, found in counts["partners"].items()]


def _partner(found: Mapping[str, Any]) -> str:
    age = found["age"]
    last = f"last one {abs(age):,} steps {'old' if age >= 0 else 'ahead'}" if found["adopted"] else ""
    stale = f"{found['stale']:,} steps too old to be heard" if found["stale"] else ""
    refused = ", ".join(found["refused"])
    refusals = f"{sum(found['refused'].values()):,} refused: {refused}" if refused else ""
    return ", ".join(filter(None, (f"{found['adopted']:,} adopted", last, stale, refusals)))
