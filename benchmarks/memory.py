"""Figures on memory and set-up: what the contrastive part adds at its highest, and what comes before the first step.

    python -m benchmarks.memory '{"batch": 64}'

prints the highest resident memory, in MiB, that one contrastive part adds in a process of its own, in which nothing
that was freed before can hide it.
"""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.learners import make_batch
from benchmarks.sizes import Setting, Sizes
from benchmarks.table import Row
from benchmarks.timing import Step, spread_of, timer_for
from coterie.core import Facts, Needs
from coterie.data import ShuffledOrder
from coterie.methods.mcl_okd import MultiViewContrast

ROOT = Path(__file__).resolve().parents[1]
_LIMITS = {"batch": 128.0, "large_batch": 200.0}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(setting: Setting) -> Iterator[Row]:
    """Measure the memory that draw, loss, gradient and bank update add, each time in a fresh process."""
    for field, limit in _LIMITS.items():
        batch = getattr(setting.sizes, field)
        sizes = replace(setting.sizes, batch=batch)
        values = [_peak_of(replace(setting, sizes=sizes)) for _ in range(min(3, setting.rounds))]
        if not any(map(math.isnan, values)):
            title = f"memory the contrastive part adds, B={batch}"
            yield Row(key=f"memory.{field}", title=title, measured=spread_of(values), unit="MiB", limit=limit)


def setup(setting: Setting) -> Iterator[Row]:
    """Time what MCL-OKD builds for a large data set: heads, banks, tables of classes, and the first epoch's order."""
    sizes = replace(setting.sizes, num_train=setting.sizes.large_train)
    labels = sizes.labels

    def build() -> None:
        make_contrast(sizes, labels).to(setting.device)
        ShuffledOrder(sizes.num_train, sizes.batch, 0).rows(0, 0)

    timer = timer_for(setting.device)
    seconds = [timer(build) / 1e3 for _ in range(min(3, setting.rounds))]
    title = f"set-up before the first step, N={sizes.num_train}"
    yield Row(key="setup", title=title, measured=spread_of(seconds), unit="s", limit=1.0)


def make_contrast(sizes: Sizes, labels: torch.Tensor) -> MultiViewContrast:
    """MCL-OKD with the paper's knobs, without networks.

    Args:
        sizes: M, S, D and K.
        labels: `[N]` int64.
    """
    facts = Facts(
        num_peers=sizes.peers,
        leader=sizes.peers - 1,
        num_classes=sizes.classes,
        embedding_dims=(64,) * sizes.peers,
        labels=labels,
        num_epochs=300,
    )
    config = MultiViewContrast.Config(num_negatives=sizes.negatives, embedding_dim=sizes.dim)
    return MultiViewContrast(config, facts)


def contrastive_part(setting: Setting) -> Step:
    """Draw, loss, gradient and bank update of a step of MCL-OKD, without networks."""
    sizes, device = setting.sizes, setting.device
    method = make_contrast(sizes, sizes.labels).to(device)
    batch = make_batch(replace(setting, sizes=replace(sizes, image=1)), Needs(), sizes.peers)
    embeddings = F.normalize(torch.randn(sizes.peers, sizes.batch, sizes.dim), dim=-1).to(device).requires_grad_()

    def part() -> None:
        loss = method.contrast(embeddings, method.candidates(batch)).loss
        loss.backward()  # type: ignore[no-untyped-call]
        method.bank.update(batch.indices, embeddings.detach())

    return part


def contrastive_peak(sizes: Sizes) -> float:
    """MiB of resident memory that one contrastive part adds at its highest; nan where there is no /proc."""
    if not _CLEAR.exists():
        return math.nan
    return added_by(contrastive_part(Setting(sizes=sizes)))


def added_by(part: Step) -> float:
    """MiB of resident memory that this process has at its highest during a call, above what it had before."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _mebibytes("VmRSS")
    part()
    return _mebibytes("VmHWM") - before


def _peak_of(setting: Setting) -> float:
    if setting.device.type == "cuda":
        return _peak_on_cuda(setting)
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(setting.sizes))]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _peak_on_cuda(setting: Setting) -> float:
    part = contrastive_part(setting)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    part()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _mebibytes(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(contrastive_peak(Sizes(**json.loads(sys.argv[1]))))
