"""The scripts and recipes for Slurm, Kubernetes and Ray that the documentation shows."""

from __future__ import annotations

import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coterie.cli.main import app
from coterie.experiment.launching import plan_launch
from launches import ENV, finish, free_port
from tiny import settings_of, trace

EXAMPLES = Path(__file__).parents[2] / "examples"
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "coterie",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_CPUS_PER_TASK": "3",
}
TINY = ["synthetic/mcl_okd", *settings_of("mcl_okd"), "seed=3", "train.threads=1"]


def put(path: Path, text: str) -> None:
    """Write a program."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which Slurm's programs are stand-ins that note how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    put(programs / "scontrol", f'echo "$@" >> {tmp_path}/scontrol.log; [ "$1" = show ] && printf "node1\\nnode2\\n"')
    put(programs / "srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    put(programs / "coterie", f'printf "%s\\n" "$@" > {tmp_path}/words; exit "${{STATUS:-0}}"')
    inherited = {key: value for key, value in ENV.items() if key not in ("OMP_NUM_THREADS", "COTERIE_LAUNCH")}
    return {**inherited, **SLURM, "PATH": f"{programs}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", ["train.sbatch", "ranks.sh"])
def test_scripts_are_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", EXAMPLES / "slurm" / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_slurm_calls_its_tasks(cluster: dict[str, str], tmp_path: Path) -> None:
    words = ["bash", "-uec", f". {EXAMPLES}/slurm/ranks.sh; env"]
    done = subprocess.run(words, env=cluster, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    expected = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "24711",
        "OMP_NUM_THREADS": "3",
        "COTERIE_LAUNCH": "4711",
    }
    assert {key: found.get(key) for key in expected} == expected


def options_of(words: list[str]) -> dict[str, Any]:
    """What `coterie launch` reads from a command line; it must be a launch that can be planned."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    given = {name: value for name, value in bound.arguments.items() if name != "words"}
    whole = {"processes": 0, "nodes": "1", "rendezvous": "", "job": "", "restarts": 3, "timeout": None, "grace": 30}
    plan = plan_launch(**{**whole, **given})
    return {"nodes": plan.nodes, "place": (plan.host, plan.port), "job": plan.job, "words": bound.arguments["words"]}


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (5, False)])
def test_a_job_that_was_stopped_is_put_back(
    cluster: dict[str, str], tmp_path: Path, status: int, requeued: bool
) -> None:
    script = ["bash", EXAMPLES / "slurm" / "train.sbatch", "digits/dml", "epochs=3"]
    done = subprocess.run(script, env={**cluster, "STATUS": str(status)}, cwd=tmp_path)
    assert done.returncode == status
    assert ("requeue 4711" in (tmp_path / "scontrol.log").read_text()) == requeued
    assert options_of((tmp_path / "words").read_text().splitlines()) == {
        "nodes": (2, 2),
        "place": ("node1", 24711),
        "job": "4711",
        "words": ("train", "digits/dml", "epochs=3", "--out", "runs/coterie-4711"),
    }


def test_a_kubernetes_job() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes" / "job.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["coterie", "launch"]
    read = options_of(["launch", *container["args"]])
    assert read["nodes"] == (spec["completions"],) * 2 == (spec["parallelism"],) * 2
    assert read["place"] == (f"{job['metadata']['name']}-0.{service['metadata']['name']}", 29500)
    assert pod["subdomain"] == service["metadata"]["name"] and pod["restartPolicy"] == "Never"
    grace = next(int(word.split("=")[1]) for word in container["args"] if word.startswith("--grace"))
    assert grace < pod["terminationGracePeriodSeconds"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"][:2]}
    assert codes == {"Ignore": [75], "FailJob": [2, 4, 5]}


def test_a_pytorch_job() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((EXAMPLES / "kubernetes" / "pytorchjob.yaml").read_text())
    for replicas in job["spec"]["pytorchReplicaSpecs"].values():
        (container,) = replicas["template"]["spec"]["containers"]
        command, bound, _ = app.parse_args(container["command"][1:], exit_on_error=False, print_error=False)
        assert command.__name__ == "train" and bound.arguments["out"] == Path("/runs/coterie-1")
        assert [variable["name"] for variable in container["env"]] == ["COTERIE_LAUNCH"]


@pytest.mark.slow
def test_two_tasks_of_slurm_train_together(cluster: dict[str, str], tmp_path: Path) -> None:
    place = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "coterie", "train", *TINY, "--out", "run"]
    tasks = [
        subprocess.Popen(
            ["bash", "-c", f'. {EXAMPLES}/slurm/ranks.sh; exec "$@"', "task", *words],
            cwd=tmp_path,
            env={**cluster, **place, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_CPUS_PER_TASK": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [finish(task).code for task in tasks] == [0, 0]
    assert trace(tmp_path / "run").result["peers"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_trains_in_its_own_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.train.torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = os.pathsep.join(filter(None, sys.path))
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        example = runpy.run_path(str(EXAMPLES / "ray_train.py"))
        assert example["run"](TINY, tmp_path / "ray" / "run") == 0
        assert example["run"](["digits/mcl_okdd"], tmp_path / "ray" / "wrong", name="wrong") == 2
    finally:
        ray.shutdown()
    alone = [sys.executable, "-m", "coterie", "launch", "--processes", "2", "train", *TINY, "--out", "launched"]
    assert subprocess.run(alone, cwd=tmp_path, env=ENV, capture_output=True).returncode == 0
    assert trace(tmp_path / "ray" / "run").result["digest"] == trace(tmp_path / "launched").result["digest"]
