"""What a step costs on many devices: what is sent and computed by each of them, counted, and simulated.

python -m benchmarks.scale [--ranks N ...] [--batch B | --per-rank B] [--bandwidth GB/S] [--latency US] [--teraflops F]
python -m benchmarks.scale --images N ... [--ranks N ...]
python -m benchmarks.scale --check [--ranks 1 2 4] [--local-norm] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy

from coterie.core.world import FEW

_BYTES = 4  # of a float32
_ORDER_BYTES, _ORDER_SECONDS = 40.0, 322e-9  # of an image, `core.draws.permutation` at 10^8 images on one core


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How ranks share the work.

    Attributes:
        peer: ranks over which the peers are split.
        data: ranks over which a batch is split.
    """

    peer: int = 1
    data: int = 1

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.peer * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What joins the ranks.

    Attributes:
        latency: seconds until the first byte of a message is there.
        bandwidth: bytes that a rank sends in a second, while it receives as many.
    """

    latency: float = 10e-6
    bandwidth: float = 25e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A cohort and what a step asks of it.

    Attributes:
        peers: M.
        parameters: numbers of each peer, its head included.
        tensors: parameter tensors of each peer.
        norms: channels of each batch norm layer of a peer; none where ranks normalise by their own images.
        says: numbers that a peer says of an image: scores and embedding, and maps where they are compared.
        image_seconds: of a device for forward and backward pass of one peer on one image.
        whole_seconds: of each device for one image of the whole batch: what a method computes of gathered outputs.
        step_seconds: of each device for a step, however many images: optimiser and banks of one peer.
        overlap: part of a backward pass behind which gradients are sent.
        backward: part of `image_seconds` that is the backward pass.
    """

    peers: int = 4
    parameters: int = 11_689_512
    tensors: int = 62
    norms: tuple[int, ...] = (64,) * 5 + (128,) * 5 + (256,) * 5 + (512,) * 5
    says: int = 1_128
    image_seconds: float
    whole_seconds: float = 0.0
    step_seconds: float = 0.0
    overlap: float = 0.9
    backward: float = 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Something that ranks send each other in a step.

    Attributes:
        name: what it is.
        ranks: that take part.
        size: bytes that each of them has to give.
        calls: number of exchanges with `size` bytes each.
        adds: whether what all have is added (all-reduce) or put side by side (all-gather).
    """

    name: str
    ranks: int
    size: float
    calls: int = 1
    adds: bool = False

    @property
    def sent(self) -> float:
        """Bytes that each rank sends, on average, when the exchange goes round a ring."""
        others = self.ranks - 1
        return self.calls * self.size * (2 * others / self.ranks if self.adds else others)

    def seconds(self, links: Links) -> float:
        """Time of it: round a ring, or by halves where that is faster, as communication libraries choose."""
        if self.ranks == 1:
            return 0.0
        rounds, others = math.ceil(math.log2(self.ranks)), self.ranks - 1
        ring = (2 if self.adds else 1) * others * links.latency + self.sent / self.calls / links.bandwidth
        moved = 2 * rounds * self.size if self.adds else others * self.size
        halves = (2 if self.adds else 1) * rounds * links.latency + moved / links.bandwidth
        return self.calls * min(ring, halves)


def exchanges(load: Load, mesh: Mesh, batch: int) -> list[Exchange]:
    """List what is sent in a step.

    Args:
        load: the cohort.
        mesh: how ranks share the work.
        batch: images of all ranks, B.
    """
    own = load.peers // mesh.peer
    said = own * load.says * batch / mesh.data * _BYTES
    rows = [
        Exchange(name="meeting", ranks=mesh.size, size=4 * 8, adds=True),
        Exchange(name="outputs", ranks=mesh.size, size=said),
        Exchange(name="gradients", ranks=mesh.data, size=own * load.parameters * _BYTES, adds=True),
        Exchange(name="used parameters", ranks=mesh.data, size=own * load.tensors * 4, adds=True),
    ]
    if load.norms:
        width = 2 * sum(load.norms) / len(load.norms) * _BYTES
        calls = own * len(load.norms)
        rows.append(Exchange(name="batch norm, forward", ranks=mesh.data, size=width, calls=calls))
        adds = mesh.data > FEW
        rows.append(Exchange(name="batch norm, backward", ranks=mesh.data, size=width, calls=calls, adds=adds))
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step costs.

    Attributes:
        mesh: how ranks share the work.
        batch: images of all ranks.
        compute: seconds in which a rank runs its peers.
        whole: seconds in which a rank computes what is not divided.
        sending: seconds of exchanges that nothing hides.
        slowest: seconds that ranks wait for the slowest of them, on average.
        sent: bytes that a rank sends.
    """

    mesh: Mesh
    batch: int
    compute: float
    whole: float
    sending: float
    slowest: float
    sent: float

    @property
    def seconds(self) -> float:
        """Length of a step."""
        return self.compute + self.whole + self.sending + self.slowest


def cost(load: Load, mesh: Mesh, batch: int, links: Links, *, jitter: float = 0.0, steps: int = 400) -> Cost:
    """Simulate steps: each rank's computing varies, all wait for the slowest, then for what is sent.

    Args:
        load: the cohort.
        mesh: how ranks share the work.
        batch: images of all ranks.
        links: what joins them.
        jitter: standard deviation of the logarithm of a rank's computing time.
        steps: simulated.

    Example:
        >>> load = Load(peers=2, image_seconds=1e-3)
        >>> cost(load, Mesh(peer=2), 64, Links()).compute
        0.064
    """
    found = exchanges(load, mesh, batch)
    own = load.peers // mesh.peer
    compute = own * (load.image_seconds * batch / mesh.data + load.step_seconds)
    hidden = load.overlap * load.backward * own * load.image_seconds * batch / mesh.data
    gradients = sum(exchange.seconds(links) for exchange in found if exchange.name == "gradients")
    others = sum(exchange.seconds(links) for exchange in found if exchange.name != "gradients")
    draws = numpy.random.default_rng(0).lognormal(-(jitter**2) / 2, jitter, (steps, mesh.size))
    return Cost(
        mesh=mesh,
        batch=batch,
        compute=compute,
        whole=load.whole_seconds * batch,
        sending=others + max(0.0, gradients - hidden),
        slowest=compute * max(0.0, float(draws.max(axis=1).mean() - 1)),
        sent=sum(exchange.sent for exchange in found),
    )


def meshes(ranks: Sequence[int], peers: int) -> Iterator[Mesh]:
    """Yield data-parallel and cohort-parallel meshes of given sizes."""
    for size in ranks:
        yield Mesh(data=size)
        if size > 1 and size % peers == 0:
            yield Mesh(peer=peers, data=size // peers)


def contrast_flops(peers: int, negatives: int, dim: int) -> float:
    """Operations for one anchor image of mutual contrast over banks, gradient included.

    Each ordered pair of peers scores the anchor against S rows; the gradient takes another product.
    """
    return 2 * 2 * peers * (peers - 1) * negatives * dim


def imagenet(teraflops: float) -> Load:
    """Four ResNet-18 on ImageNet with MCL-OKD, on devices that do so many 10^12 operations of them a second."""
    rate = teraflops * 1e12
    return Load(image_seconds=3 * 2 * 1.82e9 / rate, whole_seconds=contrast_flops(4, 16_384, 128) / rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a rank holds, and does once an epoch, for a training set of many images.

    Attributes:
        images: N.
        bank: bytes of all peers' rows in bfloat16, whole on each rank.
        share: bytes of a rank's rows where rows are split over ranks.
        tables: bytes of labels, of rows by class and of the order of an epoch.
        order: bytes while an order is drawn.
        order_seconds: time to draw it.
    """

    images: int
    bank: float
    share: float
    tables: float
    order: float
    order_seconds: float


def holdings(images: int, *, peers: int = 4, dim: int = 128, ranks: int = 1024) -> Holdings:
    """Count what a training set asks of a rank; an order's time and memory are those measured at 10^8 images."""
    bank = 2.0 * peers * images * dim
    return Holdings(
        images=images,
        bank=bank,
        share=bank / ranks,
        tables=3 * 8.0 * images,
        order=_ORDER_BYTES * images,
        order_seconds=_ORDER_SECONDS * images,
    )


def holding_lines(found: Sequence[Holdings], ranks: int) -> Iterator[str]:
    """Yield the table of what ranks hold as Markdown."""
    yield f"| images | bank GB | 1/{ranks:,} of it GB | labels, classes, order GB | drawing an order GB | seconds |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for held in found:
        sizes = (held.bank, held.share, held.tables, held.order)
        cells = " | ".join(f"{size / 1e9:,.2f}" for size in sizes)
        yield f"| {held.images:,} | {cells} | {held.order_seconds:,.1f} |"


def lines(costs: Sequence[Cost], *, weak: bool) -> Iterator[str]:
    """Yield the table of simulated steps as Markdown."""
    yield "| ranks | peer x data | images | step ms | peers | whole batch | sending | waiting | MB sent | efficiency |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    one = costs[0].seconds
    for found in costs:
        ideal = one if weak else one / found.mesh.size
        parts = (found.seconds, found.compute, found.whole, found.sending, found.slowest)
        yield (
            f"| {found.mesh.size} | {found.mesh.peer} x {found.mesh.data} | {found.batch:,} | "
            + " | ".join(f"{part * 1e3:.1f}" for part in parts)
            + f" | {found.sent / 1e6:,.0f} | {100 * ideal / found.seconds:.0f} % |"
        )


def main(words: list[str] | None = None) -> int:
    """Print the table, or check the model against processes on this machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", help="numbers of ranks")
    parser.add_argument("--batch", type=int, default=0, help="images of all ranks, the same for every number of them")
    parser.add_argument("--per-rank", type=int, default=256, help="images for each rank, where --batch is not given")
    parser.add_argument("--bandwidth", type=float, default=25.0, help="GB a rank sends in a second")
    parser.add_argument("--latency", type=float, default=10.0, help="microseconds of a message")
    parser.add_argument("--teraflops", type=float, default=60.0, help="what a device does of such networks")
    parser.add_argument("--jitter", type=float, default=0.02, help="spread of a rank's computing time")
    parser.add_argument("--local-norm", action="store_true", help="batch norm by the images of each rank")
    parser.add_argument("--images", type=float, nargs="+", help="training images: what a rank holds for them")
    parser.add_argument("--check", action="store_true", help="compare with gloo processes on this machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was compared to FILE")
    options = parser.parse_args(words)
    if options.check:
        from benchmarks.ranks import check

        return check(options.ranks or [1, 2, 4], options.json, local_norm=options.local_norm)
    if options.images:
        ranks = max(options.ranks or [1024])
        print("\n".join(holding_lines([holdings(int(count), ranks=ranks) for count in options.images], ranks)))
        return 0
    load = imagenet(options.teraflops)
    load = replace(load, norms=()) if options.local_norm else load
    links = Links(latency=options.latency * 1e-6, bandwidth=options.bandwidth * 1e9)
    ranks = options.ranks or [4**power for power in range(6)]
    costs = [
        cost(load, mesh, options.batch or options.per_rank * mesh.size, links, jitter=options.jitter)
        for mesh in meshes(ranks, load.peers)
    ]
    print("\n".join(lines(costs, weak=not options.batch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
