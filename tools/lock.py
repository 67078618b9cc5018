"""Write requirements/dev.lock: the pins of requirements/dev.txt with the SHA-256 of the file that pip takes for each.

    python tools/lock.py

The lock is for machines like the one that writes it, such as those of continuous integration: other systems and other
versions of Python need other files. pip is asked as it is configured; where files come from is not written down.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
_ASK = (*("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"), "-r")


def main() -> int:
    """Ask pip and write the lock; the exit status is that of pip."""
    command = [sys.executable, "-m", "pip", *_ASK, str(FOLDER / "dev.txt")]
    asked = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if asked.returncode == 0:
        (FOLDER / "dev.lock").write_text(make_lock(json.loads(asked.stdout)), encoding="utf-8")
    return asked.returncode


def make_lock(report: Mapping[str, Any]) -> str:
    """Write a lock from pip's report, sorted by name; a build of a version, such as `+cpu`, is told by its hash."""
    entries = []
    for package in report["install"]:
        name = package["metadata"]["name"].lower().replace("_", "-")
        version = package["metadata"]["version"].partition("+")[0]
        entries.append((name, version, package["download_info"]["archive_info"]["hashes"]["sha256"]))
    return "".join(f"{name}=={version} \\\n    --hash=sha256:{digest}\n" for name, version, digest in sorted(entries))


if __name__ == "__main__":
    sys.exit(main())
