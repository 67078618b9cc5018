"""Two jobs learn from each other through a folder; one of them is killed ten times and goes on each time.

    python examples/two_jobs.py [--kills 10] [--longest 2] [--out runs/jobs] [RECIPE key=value ...]

Each job is a `coterie train` of its own; nothing connects them but the folder OUT/exchange. Job `b` runs undisturbed;
job `a` gets SIGKILL at random moments and is started again with `--resume`. At the end their counters are printed:
what each has said, heard and refused, and how far behind it heard it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from coterie.reports import exchange_lines, read_rows

WORDS = ["digits/mcl_okd", "cohort.nets=cnn4_w4", "cohort.shared=0", "epochs=40", "data.limit=500", "method.burn_in=5"]


def main() -> int:
    """Run both jobs and tell what came of it; the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how often job a is killed")
    parser.add_argument("--longest", type=float, default=2.0, help="seconds from its first blob to its death")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs"), help="folder of both runs and of the exchange")
    parser.add_argument("words", nargs="*", default=WORDS, help="recipe and settings of both jobs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    other = start("b", options.out, options.words)
    lives = [killed("a", options, random.Random(number)) for number in range(options.kills)]
    statuses = [start("a", options.out, options.words).wait(), other.wait()]
    print(f"job a was killed {sum(lives)} times; exit statuses of a and b: {statuses[0]} and {statuses[1]}")
    for job in "ab" if not any(statuses) else "":
        tell(job, options.out / job)
    return int(any(statuses))


def start(job: str, out: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a job, or let it go on."""
    command = [sys.executable, "-m", "coterie", "train", "--out", str(out / job)]
    if (out / job / "recipe.toml").exists():
        command = [*command[:4], "--resume", str(out / job)]
    else:
        meeting = [f"exchange.folder={out / 'exchange'}", f"exchange.job={job}", f"seed={ord(job)}"]
        command += [*words, "method=codistillation_jobs", *meeting]
    with (out / f"{job}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def killed(job: str, options: argparse.Namespace, draw: random.Random) -> bool:
    """Kill a job at a random time after it has said something new; False when it has ended by itself."""
    before, process = blobs(job, options.out), start(job, options.out, options.words)
    while process.poll() is None and blobs(job, options.out) == before:
        time.sleep(0.05)
    try:
        process.wait(timeout=draw.uniform(0, options.longest))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def blobs(job: str, out: Path) -> set[str]:
    """What a job has published and not yet retired."""
    return {path.name for path in (out / "exchange").glob(f"{job}-*.safetensors")}


def tell(job: str, folder: Path) -> None:
    """Print what a finished job has learnt and counted."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    print(f"job {job}: {result['last']['test']['leader']['top1']:.2f} % on the test set")
    for line in exchange_lines(read_rows(folder).exchange):
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
