"""How the peers of a cohort are run in training: one after the other, as one network, or on a stream each.

The outputs are the same but for rounding, and so is what is kept: parameters, buffers and gradients are the peers' own.
Which way is fastest depends on the machine, so `fastest` measures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coterie.cohort.cohort import Cohort, Execution
from coterie.cohort.grouped import Grouped
from coterie.cohort.trial import undone
from coterie.core.errors import ConfigError
from coterie.core.types import PeerOutput

_WARM_UP = 2  # rounds that are not counted: kernels are chosen, memory is taken
_ROUNDS = 5


class _Uncopied:
    """A copy of a cohort runs its peers one after the other: what runs them otherwise is made for one cohort."""

    def __deepcopy__(self, memo: object) -> None:
        return None


class AsOneNetwork(_Uncopied):
    """Runs a cohort of alike, separate peers as one network; see `coterie.cohort.grouped`.

    Args:
        cohort: whose networks are run; their weights are read when they run.

    Raises:
        ConfigError: the cohort cannot be run so.
    """

    def __init__(self, cohort: Cohort) -> None:
        _refuse("grouped", bool(cohort.frozen), "frozen peers")
        _refuse("grouped", cohort.preactivations, "peers whose maps before activations are read")
        self.grouped = Grouped([cohort.nets[m] for m in cohort.here])

    def __call__(self, cohort: Cohort, views: Tensor) -> list[PeerOutput]:
        """Run the peers on views `[V, B, C, H, W]`."""
        seen = cohort.seen(views)
        return self.grouped(views, [seen[m] for m in cohort.here], cohort.stage_maps)


class OnStreams(_Uncopied):
    """Runs every peer on a CUDA stream of its own; autograd takes each peer's backward pass to the same stream.

    Args:
        cohort: separate peers.
        device: where they are.

    Raises:
        ConfigError: the device has no streams, or peers share stages and so cannot run at the same time.
    """

    def __init__(self, cohort: Cohort, device: torch.device) -> None:
        _refuse("streams", device.type != "cuda", f"on {device.type}, only on CUDA")
        _refuse("streams", bool(cohort.copies), "peers that share stages")
        self.streams = [torch.cuda.Stream(device) for _ in cohort.here]  # type: ignore[no-untyped-call]

    def __call__(self, cohort: Cohort, views: Tensor) -> list[PeerOutput]:
        """Run the peers on views `[V, B, C, H, W]`; what follows on the present stream waits for all of them."""
        current = torch.cuda.current_stream(views.device)
        peers = []
        for peer, stream in zip(cohort.here, self.streams, strict=True):
            stream.wait_stream(current)
            views.record_stream(stream)  # its memory is not given away while this stream may read it
            with torch.cuda.stream(stream):
                peers.append(cohort.run_peer(peer, views, {}, [{} for _ in views]))
        for stream, output in zip(self.streams, peers, strict=True):
            current.wait_stream(stream)
            for tensor in (output.logits, output.embedding, *output.stages, *output.preactivations):
                tensor.record_stream(current)
        return peers


def make_execution(name: str, cohort: Cohort, views: Tensor) -> Execution | None:
    """Prepare a way of running a cohort, and try it.

    Args:
        name: `loop`, `grouped` or `streams`.
        cohort: on its device, with what the method asks of it set; it is not changed.
        views: `[V, B, C, H, W]`, two images of the run's shape at least, on the same device.

    Returns:
        What `Cohort.execution` takes.

    Raises:
        ConfigError: the cohort cannot be run so; the line says why.
    """
    if name == "loop":
        return None
    if name == "streams":
        return OnStreams(cohort, views.device)
    together = AsOneNetwork(cohort)
    try:
        with undone([cohort]), torch.no_grad():
            together(cohort, views)
    except RuntimeError as error:  # a custom block whose maps do not fit each other when peers stand side by side
        reason = str(error).splitlines()[0]
        raise _refusal("grouped", f"these networks ({reason})") from None
    return together


def possible_executions(cohort: Cohort, views: Tensor) -> dict[str, Execution | None]:
    """Every way in which a cohort can be run, by name, the loop first; see `make_execution`."""
    found: dict[str, Execution | None] = {}
    for name in ("loop", "grouped", "streams"):
        try:
            found[name] = make_execution(name, cohort, views)
        except ConfigError:
            continue
    return found


def fastest(
    cohort: Cohort, views: Tensor, ways: Mapping[str, Execution | None], clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Measure ways of running a cohort: forward and backward pass on a batch, in turns; nothing of it stays.

    Args:
        cohort: in training mode.
        views: `[V, B, C, H, W]` of the run's shape.
        ways: by name, what `possible_executions` returned.
        clock: seconds, after the device has done what it was given; its own clock when None.

    Returns:
        Median seconds by name, the fastest first.
    """
    clock = clock or (lambda: _clock(views.device))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    before = cohort.execution
    devices = [views.device] if views.device.type == "cuda" else []
    with undone([cohort]), torch.random.fork_rng(devices=devices):
        for _ in range(_WARM_UP + _ROUNDS):
            for name, cohort.execution in ways.items():
                began = clock()
                _pass(cohort, views)
                seconds[name].append(clock() - began)
    cohort.execution = before
    medians = {name: statistics.median(taken[_WARM_UP:]) for name, taken in seconds.items()}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def _pass(cohort: Cohort, views: Tensor) -> None:
    loss = torch.stack([peer.logits for peer in cohort(views)]).float().square().mean()
    torch.autograd.grad(loss, list(filter(_learns, cohort.parameters())), allow_unused=True)


def _learns(parameter: Tensor) -> bool:
    return parameter.requires_grad


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _refuse(name: str, found: bool, what: str) -> None:
    if found:
        raise _refusal(name, what)


def _refusal(name: str, what: str) -> ConfigError:
    return ConfigError(f"cohort.execution={name} cannot run {what}; set cohort.execution=loop, or auto")
