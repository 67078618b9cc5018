"""A tiny training run with every kind of state: two peers with a shared layer, dropout, BatchNorm, a memory, AdamW."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from coterie.core.files import write_text_atomically
from coterie.core.record import MetricsLog, RunFolder, read_metrics
from coterie.engine.background import BackgroundWriter
from coterie.engine.checkpoint import CheckpointStore
from coterie.engine.optim_state import (
    by_owner,
    joined_owners,
    optimizer_tensors,
    optimizer_values,
    parameter_names,
    restore_optimizer,
)
from coterie.engine.rng_state import restore_rng, rng_tensors, rng_values
from coterie.engine.snapshot import (
    Snapshot,
    digest,
    memory_tensors,
    peer_tensors,
    restore_memories,
    restore_peers,
)

STEPS = 24


class ToyMemory:
    """Rows that follow the outputs."""

    def __init__(self) -> None:
        self.rows = torch.zeros(8, 3)

    def state(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.rows.copy_(state["rows"])

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        self.rows = change(self.rows)


class Toy:
    """The live objects of a run."""

    def __init__(self, optimizer: str = "adamw", width: int = 6) -> None:
        torch.manual_seed(5)
        numpy.random.seed(5)
        random.seed(5)
        shared = nn.Linear(4, width)
        self.peers = [
            nn.Sequential(shared, nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 3)) for _ in range(2)
        ]
        self.memories = {"bank": ToyMemory()}
        self.names = parameter_names(self.peers)
        kinds = {
            "adamw": lambda: torch.optim.AdamW(list(self.names), lr=0.01),
            "sgd": lambda: torch.optim.SGD(list(self.names), lr=0.01, momentum=0.9, nesterov=True),
        }
        self.optimizer = kinds[optimizer]()

    def step(self, number: int) -> float:
        noise = float(numpy.random.rand()) + random.random()
        images = torch.randn(5, 4) + noise
        loss = sum(peer(images).square().mean() for peer in self.peers)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 * (1 - number / 100)
        self.memories["bank"].rows[number % 8] = self.peers[0][3].bias.detach()
        return float(loss.detach())

    def snapshot(self, step: int, offset: int = 0) -> Snapshot:
        return Snapshot(
            tensors={
                **peer_tensors(self.peers),
                **by_owner(optimizer_tensors(self.optimizer, self.names)),
                "memory": memory_tensors(self.memories),
                "rng": rng_tensors(),
            },
            values={
                "step": step,
                "offset": offset,
                "best": float("-inf"),
                "optimizer": optimizer_values(self.optimizer, self.names),
                "rng": rng_values(),
            },
        )

    def restore(self, snapshot: Snapshot) -> None:
        restore_peers(self.peers, snapshot)
        restore_optimizer(self.optimizer, self.names, joined_owners(snapshot.tensors), snapshot.value("optimizer"))
        restore_memories(self.memories, snapshot.section("memory"))
        restore_rng(snapshot.section("rng"), snapshot.value("rng"))


def _save(store: CheckpointStore, log: MetricsLog, step: int, snapshot: Snapshot) -> None:
    log.sync()
    store.save(step, snapshot)


def train(path: Path, steps: int = STEPS, optimizer: str = "adamw", *, background: bool = False) -> str:
    """Train to the end from wherever the folder stands, a checkpoint every step; the digest of the end state.

    In the background each checkpoint is written while the next step is taken.
    """
    run = RunFolder(path).create()
    with run.lock():
        store, log, toy = CheckpointStore(run.checkpoints), MetricsLog(run.metrics), Toy(optimizer)
        found = store.load_newest()
        done = 0
        if found:
            done, snapshot = found
            toy.restore(snapshot)
            log.truncate(int(snapshot.value("offset")))
        else:
            log.truncate(0)
        writer = BackgroundWriter()
        while done < steps:
            loss = toy.step(done)
            done += 1
            log.append({"step": done, "loss": loss})
            if background:
                writer.result()
                writer.begin(toy.snapshot(done, log.size()), partial(_save, store, log, done))
            else:
                store.save(done, toy.snapshot(done, log.offset()))
        writer.result()
        writer.close()
        final = digest(toy.snapshot(done, log.offset()))
        write_text_atomically(run.result, final)
        return final


def proof(path: Path) -> tuple[str, list[int], list[str]]:
    """What an undisturbed and a tormented run must have in common: end state, rows, and nothing left lying about."""
    left = [entry.name for folder in (path, path / "checkpoints") for entry in os.scandir(folder)]
    odd = [name for name in left if name.startswith(".") and name != ".lock"]
    return (path / "result.json").read_text(), [int(row["step"]) for row in read_metrics(path / "metrics.jsonl")], odd
