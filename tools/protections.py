"""Take each protection out of the package and see the test of its case fail: a test that still passes proves nothing.

    python tools/protections.py [NAME...]

The protections are in `tools/protections.toml`: a text of the source, what stands there instead, the cases of
docs/reliability.md that it protects from, and the test that must fail without it. How they ended is kept in
`results/protections.json`, from where `tools/fault_table.py` takes it. The exit status is 1 when a test passes without
its protection, or does not pass with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tools" / "protections.toml"
RESULTS = ROOT / "results" / "protections.json"
LIMIT = 240.0  # seconds; a test that waits for ever has failed too

_TESTS_FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Something of the source that keeps a fault from doing harm.

    Attributes:
        name: how the table calls it.
        cases: of docs/reliability.md.
        what: what is taken out, in words.
        module: where it is.
        text: how it reads there; once.
        instead: what takes its place.
        test: node of pytest that must fail without it.
        limit: seconds after which a test that waits has failed.
    """

    name: str
    cases: Sequence[int]
    what: str
    module: str
    text: str
    instead: str
    test: str
    limit: float = LIMIT

    @property
    def path(self) -> Path:
        """File of the module."""
        return ROOT / "src" / Path(*self.module.split(".")).with_suffix(".py")


def main() -> int:
    """Try the protections and print a table; exit status 1 when one is not shown to be needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which to try; all by default")
    options = parser.parse_args()
    known = read_protections()
    unknown = set(options.names) - known.keys()
    if unknown:
        parser.error(f"no protection {sorted(unknown)}; known: {', '.join(known)}")
    results, needless = read_results(), 0
    for name in options.names or known:
        found = try_without(known[name])
        results[name] = found
        needless += found["ended"] not in ("failed", "did not end")
        cases = ", ".join(map(str, known[name].cases))
        print(f"{name:<28} case {cases:<8} {found['ended']:<12} {known[name].test}", flush=True)
        _write({name: results[name] for name in known if name in results})
    print(f"{needless} tests pass without their protection" if needless else "every test fails without its protection")
    return int(bool(needless))


def read_protections() -> dict[str, Protection]:
    """The table, by name."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Protection(name=name, **row) for name, row in rows.items()}


def read_results() -> dict[str, Any]:
    """How the tests ended when they were last tried; empty when they never were."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return found


def try_without(protection: Protection) -> dict[str, Any]:
    """Run the test of a protection without it.

    Returns:
        `ended`: `failed`, `did not end`, `passed`, or `no such test`; the `test`; and the `seconds` it took.
    """
    begun = time.monotonic()
    folders = [str(ROOT / "tests" / "without"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "COTERIE_WITHOUT": protection.name}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", protection.test]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        ended = _ending(process, protection.limit)
    return {"ended": ended, "test": protection.test, "seconds": round(time.monotonic() - begun)}


def _ending(process: subprocess.Popen[bytes], limit: float) -> str:
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "did not end"
    if status == 0:
        return "passed"
    return "failed" if status == _TESTS_FAILED or status < 0 else "no such test"


def _write(results: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
