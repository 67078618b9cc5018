"""The leader leaves: weights, a program and an ONNX file, each reloaded and compared before anything is kept.

A folder of exports holds `leader.safetensors` (a plain state dict), `leader.pt2` (a `torch.export` program that runs
with torch alone), `leader.onnx` (when onnx and onnxscript are installed) and `README.md` (the model card). It is
written beside its target and renamed, so a failed export leaves the previous one, or nothing.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from coterie.core.errors import CheckpointError, ConfigError, NumericError
from coterie.evaluation.export_formats import Forward, Loaded, NotWritten, write_onnx, write_program, write_weights
from coterie.evaluation.model_card import ModelCard, render_card
from coterie.nets.cost import count_parameters, multiply_adds

WEIGHTS, PROGRAM, ONNX, CARD = "leader.safetensors", "leader.pt2", "leader.onnx", "README.md"
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRow:
    """What became of one file.

    Attributes:
        file: its name in the folder of exports.
        bytes: its size; 0 when it was not written.
        parameters: counted in the reloaded file; None where a format folds weights away or nothing was reloaded.
        max_difference: largest absolute difference of the reloaded file's logits from the leader's; None if not run.
        latency_ms: median time for one image on this CPU, in milliseconds; None if not run.
        note: what to know, or why the file was not written.
    """

    file: str
    bytes: int = 0
    parameters: int | None = None
    max_difference: float | None = None
    latency_ms: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was exported.

    Attributes:
        folder: where the files are.
        parameters: of the leader, equal to those of the plain network.
        multiply_adds: of the leader, for one image.
        rows: one for each file, written or not.
    """

    folder: Path
    parameters: int
    multiply_adds: int
    rows: tuple[ExportRow, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    net: nn.Module
    images: Tensor
    logits: Tensor
    parameters: int
    multiply_adds: int


def export_leader(
    net: nn.Module,
    *,
    image_shape: Sequence[int],
    folder: Path,
    card: ModelCard,
    build: Callable[[], nn.Module] | None = None,
) -> ExportReport:
    """Write a network in every format that this machine can, and prove that each file gives the same logits.

    The network itself is not changed: a deep copy in eval mode on the CPU is exported.

    Args:
        net: maps normalised images `[B, C, H, W]` to logits `[B, K]`; the leader of a cohort or any other module.
        image_shape: `[C, H, W]` of an image.
        folder: where the files go; an earlier export there is replaced.
        card: what the model card tells.
        build: makes the plain network with fresh weights, into which the saved ones must fit; by default a copy of
            `net` whose weights are erased.

    Returns:
        The report; formats that could not be written have a row that says why.

    Raises:
        ConfigError: the network does not give one logit per class, or the folder holds other files.
        NumericError: the logits are not finite.
        CheckpointError: a file cannot be written, or does not give the leader's logits when it is loaded again.
    """
    job = _prepare(net, image_shape, len(card.classes))
    plain = build or (lambda: _erased(job.net))
    with _replacing(folder) as fresh:
        rows = [
            _export(job, fresh / WEIGHTS, partial(write_weights, build=plain, network=card.network), 0.0),
            _export(job, fresh / PROGRAM, partial(write_program, images=job.images), TOLERANCE),
            _export(job, fresh / ONNX, partial(write_onnx, images=job.images), TOLERANCE),
        ]
        page = render_card(
            card,
            image_shape=image_shape,
            parameters=job.parameters,
            multiply_adds=job.multiply_adds,
            files=report_table(rows),
        )
        (fresh / CARD).write_text(page, encoding="utf-8")
        rows.append(ExportRow(file=CARD, bytes=(fresh / CARD).stat().st_size, note="model card"))
    return ExportReport(folder=folder, parameters=job.parameters, multiply_adds=job.multiply_adds, rows=tuple(rows))


def report_table(rows: Sequence[ExportRow]) -> list[list[str]]:
    """Lay out rows for people: file, size, parameters, largest difference, milliseconds an image, note.

    Args:
        rows: of an `ExportReport`.

    Returns:
        Rows of words, the header first; `-` where there is nothing to say.
    """
    table = [["file", "bytes", "parameters", "largest difference", "ms per image", "note"]]
    for row in rows:
        size = f"{row.bytes:,}" if row.bytes else "-"
        numbers = _word(row.parameters, ","), _word(row.max_difference, ".1e"), _word(row.latency_ms, ".2f")
        table.append([row.file, size, *numbers, row.note])
    return table


def _word(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def _prepare(net: nn.Module, image_shape: Sequence[int], num_classes: int) -> _Job:
    twin = _contiguous_twin(net)
    adds = multiply_adds(twin, image_shape)  # first, as it says in one line when images of this shape do not fit
    images = torch.randn((3, *image_shape), generator=torch.Generator().manual_seed(0)).to(_dtype(twin))
    logits = _logits(twin, images)
    _check_logits(logits, num_classes)
    return _Job(twin, images, logits, count_parameters(twin), adds)


def _contiguous_twin(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net).cpu().eval()
    for tensor in itertools.chain(twin.parameters(), twin.buffers()):
        tensor.data = tensor.data.contiguous()  # files keep no memory format, and other formats round otherwise
    return twin


def _dtype(net: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in net.parameters() if tensor.is_floating_point()), torch.float32)


def _check_logits(logits: object, num_classes: int) -> None:
    if not isinstance(logits, Tensor) or logits.shape != (3, num_classes):
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the network gives {given} for 3 images and the card names {num_classes} classes;"
            " export a network that returns one logit per class"
        )
    if not logits.isfinite().all():
        raise NumericError("the leader's logits are not finite; export an earlier checkpoint")


def _erased(net: nn.Module) -> nn.Module:
    blank = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in blank.state_dict().values():
            tensor.zero_()
    return blank


def _logits(forward: Forward, images: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(images)


def _export(job: _Job, path: Path, write: Callable[[nn.Module, Path], Loaded], tolerance: float) -> ExportRow:
    try:
        loaded = write(job.net, path)
    except NotWritten as why:
        path.unlink(missing_ok=True)
        return ExportRow(file=path.name, note=f"not written: {why}")
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot write {path.name}: {reason}; free space or choose another folder") from None
    row = ExportRow(file=path.name, bytes=path.stat().st_size, parameters=loaded.parameters, note=loaded.note)
    if loaded.forward is None:
        return row
    largest = _difference(job, row, loaded.forward, tolerance)
    return replace(row, max_difference=largest, latency_ms=_latency(loaded.forward, job.images[:1]))


def _difference(job: _Job, row: ExportRow, forward: Forward, tolerance: float) -> float:
    if row.parameters not in (None, job.parameters):
        raise CheckpointError(
            f"{row.file} holds {row.parameters} parameters and the leader {job.parameters}; the export was dropped"
        )
    one = job.images[:1]
    many_off, one_off = _logits(forward, job.images) - job.logits, _logits(forward, one) - _logits(job.net, one)
    largest = max(many_off.abs().max().item(), one_off.abs().max().item())
    if not largest <= tolerance * max(1.0, job.logits.abs().max().item()):
        raise CheckpointError(
            f"{row.file} gives other logits than the leader when it is loaded again (off by {largest:.2g}, allowed"
            f" {tolerance:g}); the export was dropped"
        )
    return largest


def _latency(forward: Forward, image: Tensor, seconds: float = 0.3) -> float:
    times: list[float] = []
    for _ in range(3):
        _logits(forward, image)
    while len(times) < 5 or (sum(times) < seconds and len(times) < 100):
        start = time.perf_counter()
        _logits(forward, image)
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends without an error."""
    folder = folder.resolve()
    _check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch, "new")
            fresh.mkdir()
            yield fresh
            _swap(fresh, folder, old=Path(scratch, "old"))
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None


def _swap(fresh: Path, folder: Path, *, old: Path) -> None:
    """Rename `folder` to `old` and `fresh` to `folder`; the old folder comes back when that fails."""
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the export")
    others = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = sorted(set(others) - {WEIGHTS, PROGRAM, ONNX, CARD})
    if others:
        raise ConfigError(f"{folder} holds {others[0]!r}, which is no export; name an empty or a new folder")
