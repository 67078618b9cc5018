"""Mirrors in an object store that speaks S3, on this machine; skipped where s3fs and moto are not installed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_mirror import run_with, state

from coterie.core import CheckpointError
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore, Mirror, Remote
from coterie.engine.snapshot import digest
from faults import memory_folder

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket; drivers learn the rest from their environment."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(f"bucket-{port}")
    yield f"s3://bucket-{port}/runs/one"
    running.stop()


_DYING = """
import sys
from pathlib import Path
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore, Mirror, Remote
folder = RunFolder(Path(sys.argv[1]))
Mirror(Remote(sys.argv[2]), folder).publish(6, CheckpointStore(folder.checkpoints).path_of(6))
"""


@pytest.mark.case(47)
def test_a_death_between_files_and_manifest(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_folder() as place:
        folder, store = run_with(place, 3, 6)
        mirror = Mirror(Remote(bucket), folder)
        assert mirror.steps() == [] and mirror.fetch() is None
        mirror.publish(3, store.path_of(3))
        monkeypatch.setenv("COTERIE_CRASH_AT", "mirror-files:1")
        died = subprocess.run([sys.executable, "-c", _DYING, folder.path, bucket], check=False)
        monkeypatch.delenv("COTERIE_CRASH_AT")
        assert died.returncode == -signal.SIGKILL
        assert mirror.remote.names("checkpoints") == ["step-00000003", "step-00000006"]
        assert mirror.steps() == [3]
        assert fetched(mirror, place / "other") == 3
        mirror.publish(6, store.path_of(6))
        assert fetched(mirror, place / "third") == 6


def fetched(mirror: Mirror, path: Path) -> int | None:
    there = RunFolder(path)
    step = Mirror(mirror.remote, there).fetch()
    assert step is not None and digest(CheckpointStore(there.checkpoints).load(step)) == digest(state(step))
    return step


def test_retention_and_a_second_writer(bucket: str) -> None:
    with memory_folder() as place:
        folder, store = run_with(place, 1, 2, 3)
        mirror = Mirror(Remote(bucket), folder)
        for step in (1, 2, 3):
            mirror.publish(step, store.path_of(step))
        mirror.retire(keep=2, every=0)
        assert mirror.remote.names("checkpoints") == ["step-00000002", "step-00000003"]
        with pytest.raises(CheckpointError, match="another run writes here"):
            mirror.remote.create("checkpoints/step-00000003/MANIFEST.json", b"{}")
        (store.path_of(3) / "values.json").rename(place / "values.json")
        assert mirror.remote.read("checkpoints/step-00000003/values.json") == (place / "values.json").read_bytes()
        assert mirror.remote.read("nothing") is None


def test_a_server_that_is_gone_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CheckpointError, match="cannot reach s3://bucket") as caught:
        Remote(bucket).names()
    assert "\n" not in str(caught.value)
