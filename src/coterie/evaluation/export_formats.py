"""Formats of an exported network: each is written and loaded again, ready to be compared."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from coterie.core.errors import CheckpointError, ConfigError
from coterie.nets.cost import count_parameters

Forward = Callable[[Tensor], Tensor]


class NotWritten(Exception):
    """A format that cannot be had for this network or on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file, loaded again.

    Attributes:
        note: what to know about the format.
        forward: maps images `[B, C, H, W]` on the CPU to logits `[B, K]`; None when nothing here can run the file.
        parameters: counted in what was loaded; None where the format folds weights away.
    """

    note: str
    forward: Forward | None = None
    parameters: int | None = None


def write_weights(net: nn.Module, path: Path, *, build: Callable[[], nn.Module], network: str) -> Loaded:
    """Write the state dict as safetensors and load it into a plain network.

    Args:
        net: on the CPU, in eval mode.
        path: the file to write.
        build: makes the plain network that the weights must fit.
        network: name of the architecture, kept in the file's metadata.

    Raises:
        ConfigError: the state dict holds something that is not a tensor.
        CheckpointError: the weights do not fit the plain network.
    """
    path.write_bytes(save(_copied_state(net), {"format": "pt", "network": network}))  # save_file ignores the umask
    plain = build().cpu().eval()
    try:
        plain.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path.name} does not fit the plain network: {reason}; the export was dropped") from None
    return Loaded("plain state dict", plain, count_parameters(plain))


def write_program(net: nn.Module, path: Path, *, images: Tensor) -> Loaded:
    """Trace with `torch.export`, for any batch size, and load the program again.

    Args:
        net: on the CPU, in eval mode.
        path: the file to write.
        images: `[B, C, H, W]` to trace with, B above 1.

    Raises:
        NotWritten: the network cannot be traced.
    """
    with _quietly():
        try:
            program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # whatever a foreign network makes the tracer say
            raise NotWritten(_reason(error)) from error
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
    return Loaded("runs with torch alone, any batch size", loaded, count_parameters(loaded))


def write_onnx(net: nn.Module, path: Path, *, images: Tensor) -> Loaded:
    """Convert to ONNX, for any batch size, and load the file into onnxruntime when that is installed.

    Args:
        net: on the CPU, in eval mode.
        path: the file to write; input `images`, output `logits`.
        images: `[B, C, H, W]` to trace with, B above 1.

    Raises:
        NotWritten: onnx or onnxscript is not installed, or the network cannot be converted.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise NotWritten(f"{missing[0]} is not installed; run: pip install 'coterie[onnx]'")
    with _quietly():
        try:
            torch.onnx.export(
                net,
                (images,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except Exception as error:  # whatever a foreign network makes the converter say
            raise NotWritten(_reason(error)) from error
    if find_spec("onnxruntime") is None:
        return Loaded("any batch size; not compared, onnxruntime is not installed")
    return Loaded("any batch size", _session(path))


def _copied_state(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ConfigError(f"state {odd[0]!r} is not a tensor; only plain state dicts can be exported")
    return {name: value.clone() for name, value in state.items()}


def _session(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return forward


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:200]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporters print, warn and log, which a user can do nothing about, off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
