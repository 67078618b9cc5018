"""The command: every figure of the table, or some of them, in one run.

python -m benchmarks [--only NAME ...] [--rounds N] [--device cpu|cuda] [--precision P] [--json FILE]
python -m benchmarks --method NAME [KNOB=VALUE ...] [--rounds N] [--json FILE]
python -m benchmarks --profile FILE
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks import checkpoints, contrast, data, gpu, memory, methods, scaling, steps, transport, waits
from benchmarks.sizes import Setting, Sizes
from benchmarks.table import Line, head, text_of, write_json
from coterie.core import CoterieError
from coterie.core.allocator import keep_freed_memory

Figure = Callable[[Setting], Iterable[Line]]
FIGURES: Mapping[str, Figure] = {
    "core": contrast.core,
    "memory": memory.peak,
    "exact": contrast.exact,
    "noise": contrast.noise,
    "full": steps.full,
    "many": steps.many,
    "large": contrast.large,
    "setup": memory.setup,
    "methods": methods.every,
    "augment": data.augmentation,
    "sinkhorn": transport.transport,
    "waits": waits.waiting,
    "checkpoints": checkpoints.saving,
    "scaling": scaling.scaling,
}
ON_CUDA: Mapping[str, Figure] = {"gpu": gpu.throughput, "modes": gpu.modes}


def main(words: list[str] | None = None) -> int:
    """Measure what is asked for, print it line by line and write it on request.

    Args:
        words: of the command line; those of the process by default.

    Returns:
        The exit status: 0 when all was measured, whether limits are reached or not.
    """
    parser = make_parser()
    options = parser.parse_intermixed_args(words)
    _check(parser, options)
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    setting = setting_of(options)
    if options.profile:
        steps.profile(setting, options.profile)
        print(f"wrote {options.profile}")
        return 0
    start, lines = time.perf_counter(), list[Line]()
    try:
        for line in _lines(options, setting):
            lines.append(line)
            print(text_of(line), flush=True)
    except CoterieError as error:
        _refuse(parser, str(error))
    if options.json:
        write_json(options.json, lines, setting, seconds=time.perf_counter() - start)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    names = [*FIGURES, *ON_CUDA]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"figures: {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side that count")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a trace of a full step, and no more")
    parser.add_argument(
        "--method", metavar="NAME", help="compare this method with kd, or with plain steps, and no more"
    )
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="its knobs, without `method.`")
    return parser


def setting_of(options: argparse.Namespace) -> Setting:
    """Sizes and device of a run of the command; on CUDA the batch is that of the GPU table."""
    device = torch.device(options.device)
    sizes = Sizes(batch=128, large_batch=256) if device.type == "cuda" else Sizes()
    return Setting(sizes=sizes, device=device, rounds=max(1, options.rounds), precision=options.precision)


def measure(setting: Setting, only: Iterable[str] = ()) -> Iterator[Line]:
    """Yield the lines of the table as they are measured.

    Args:
        setting: sizes, device, rounds.
        only: names of figures; all that the device has when empty.
    """
    known = {**FIGURES, **ON_CUDA}
    given = tuple(only) or (*FIGURES, *(ON_CUDA if setting.device.type == "cuda" else ()))
    for name in given:
        yield from known[name](setting)


def _lines(options: argparse.Namespace, setting: Setting) -> Iterator[Line]:
    lines = measure(setting, options.only or ())
    if options.method:
        lines = steps.compare(setting, options.method, options.knobs)
    print(head())
    yield from lines


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.knobs and not options.method:
        _refuse(parser, "knobs belong to a method; name one with --method")
    if options.device == "cuda" and not torch.cuda.is_available():
        _refuse(parser, "--device cuda, but torch finds no CUDA device here; use --device cpu")


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Leave with one line on what cannot be measured."""
    parser.exit(2, f"{parser.prog}: error: {' '.join(message.split())}\n")


if __name__ == "__main__":
    sys.exit(main())
