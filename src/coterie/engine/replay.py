"""Mail that was delivered before: a run is repeated with the very blobs, at the very steps, that its log tells of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coterie.core.errors import DataError
from coterie.engine.blobs import BlobName, Refused, parse_name
from coterie.engine.courier import Arrival, Event, Parcel, Route, fetch


class Replay:
    """Brings what a log of before tells, when it tells it; says nothing to anybody. See `coterie.engine.courier.Mail`.

    Args:
        route: where the blobs still are.
        rows: of `metrics.jsonl` of the run that is repeated.

    Raises:
        DataError: a row names something that is no blob.
    """

    def __init__(self, route: Route, rows: Iterable[Mapping[str, Any]]) -> None:
        self.route = route
        self._adopted: dict[int, list[BlobName]] = {}
        for row in rows:
            if row.get("kind") == "exchange":
                self._adopted[int(row["step"])] = [_name(said.get("blob")) for said in row["adopted"]]

    def begin(self, known: Mapping[str, str], *, anew: bool) -> None:
        """Nothing: what was adopted before a checkpoint is in the checkpoint."""

    def look(self, step: int) -> None:
        """Nothing: it is known what will come."""

    def send(self, parcel: Parcel) -> None:
        """Nothing: it has been said."""

    def collect(self, step: int) -> tuple[list[Arrival], list[Event]]:
        """Read what was adopted at a step.

        Raises:
            DataError: a blob is not there any more, or is not what it was.
        """
        names = self._adopted.get(step, [])
        sizes = self.route.place.sizes() if names else {}
        arrivals = [self._fetched(name, sizes.get(str(name))) for name in names]
        return arrivals, [Event("fetched", name.job) for name in names]

    def close(self, patience: float) -> None:
        """Nothing."""

    def _fetched(self, name: BlobName, size: int | None) -> Arrival:
        try:
            if size is None:
                raise FileNotFoundError
            return fetch(self.route, name, size)
        except (Refused, FileNotFoundError) as error:
            why = str(error) if isinstance(error, Refused) else "is gone"
            raise DataError(
                f"blob {name.brief} in {self.route.place.where} {why}, and the run to be repeated has learnt from it;"
                " repeat runs of jobs that keep all blobs, with exchange.keep=0"
            ) from None


def _name(text: object) -> BlobName:
    name = parse_name(str(text))
    if name is None:
        raise DataError(
            f"the log of the run to be repeated names {str(text)[:80]!r}, which is no blob; give another run"
        )
    return name
