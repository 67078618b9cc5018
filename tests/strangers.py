"""Partners made by hand: blobs that are right, and blobs that are wrong in one way each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from coterie.engine.blobs import encode, name_for
from coterie.engine.courier import Courier

FACTS = {"net": "net", "classes": "c"}


def write(folder: Path, content: bytes, job: str, step: int, kind: str = "weights", sha256: str = "") -> Path:
    """Store content under the name of a blob; under its true hash unless another one is given."""
    name = str(name_for(content, job=job, step=step, kind=kind))
    if sha256:
        name = name.replace(hashlib.sha256(content).hexdigest(), sha256)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def speak(
    folder: Path,
    job: str,
    step: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, str] = FACTS,
    kind: str = "weights",
) -> Path:
    """Publish as a partner would."""
    content = encode(dict(tensors), job=job, step=step, kind=kind, facts=facts)
    return write(folder, content, job, step, kind)


def forged(content: bytes, change: Callable[[dict], object], job: str, step: int, folder: Path) -> Path:
    """Change the header of a blob and store it under the hash that it has then."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return write(folder, len(text).to_bytes(8, "little") + text + content[8 + length :], job, step)


def flip(path: Path, place: int = -3) -> Path:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    return path


def tensors(value: float = 0.5) -> dict[str, Tensor]:
    """What the toy network of these tests is made of."""
    return {"weight": torch.full((3, 2), float(value)), "seen": torch.tensor(4)}


def soon(true: Callable[[], object], patience: float = 10.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


class Prompt(Courier):
    """A courier for which the run waits, so that what it brings does not depend on the clock."""

    def look(self, step: int) -> None:
        super().look(step)
        soon(lambda: (self._desk.look is None and not self._desk.busy_since) or self._retries["look"].delay)

    def send(self, parcel: object) -> None:
        super().send(parcel)
        soon(lambda: (self._desk.publish is None and not self._desk.busy_since) or self._retries["publish"].delay)
