"""Train under Ray: Ray starts the workers and sets up their process group, and coterie trains in it.

    python examples/ray_train.py digits/mcl_okd epochs=2

A worker that fails is started again with the others, and goes on with the run that the same name began.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

RUN = Path("runs/ray").resolve()
AGAIN = (1, 6)  # exit statuses after which another start may end otherwise


def train(config: dict[str, Any]) -> None:
    """What each worker does: `coterie train` with the words of this command line."""
    from coterie.cli.main import run as coterie

    os.environ["COTERIE_LAUNCH"] = config["name"]
    status = coterie(["train", *config["words"], "--out", config["out"]])
    if status in AGAIN:
        raise RuntimeError(f"coterie left with {status}; see {config['out']}/status.json")


def run(words: list[str], out: Path = RUN, *, workers: int = 2, gpus: bool = False, name: str = "ray-1") -> int:
    """Train with several workers, which are started again up to three times.

    Args:
        words: recipe and settings.
        out: folder of the run, on a disk that all workers see.
        workers: number of processes.
        gpus: whether each has a GPU of its own.
        name: of this launch; a worker that is started again goes on with the run that it began.

    Returns:
        The exit status of the run.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from coterie.core.record import RunFolder

    TorchTrainer(
        train,
        train_loop_config={"words": words, "out": str(out), "name": name},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(name=name, failure_config=FailureConfig(max_failures=3), storage_path=str(out.parent)),
    ).fit()
    status = RunFolder(out).read_status()
    return 2 if status is None or status.exit_code is None else status.exit_code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
