"""Checkpoints in a second place: manifest last, torn ones do not exist, failures cost nothing but a warning."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from coterie.core import CheckpointError, ConfigError
from coterie.core.record import RunFolder
from coterie.engine import CheckpointStore, Mirror, Remote, Uploads, load_from, save_to, uploads
from coterie.engine.checkpoint import CheckpointWarning
from coterie.engine.snapshot import Snapshot, digest
from faults import memory_folder, names, run_child
from faulty_store import failing, slow, store_with


@pytest.fixture
def place() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


def state(step: int) -> Snapshot:
    tensors = {"peer0": {"w": torch.full((50,), float(step))}, "memory": {"rows": torch.arange(9.0) + step}}
    return Snapshot(tensors=tensors, values={"epoch": step, "log_bytes": 4})


def run_with(place: Path, *steps: int, name: str = "run", keep: int = 9) -> tuple[RunFolder, CheckpointStore]:
    folder = RunFolder(place / name).create()
    for path, text in ((folder.recipe, "epochs = 1\n"), (folder.environment, "{}"), (folder.metrics, "abcd\nefgh\n")):
        path.write_text(text)
    store = CheckpointStore(folder.checkpoints, keep)
    for step in steps:
        store.save(step, state(step))
    return folder, store


def mirror_at(place: Path, folder: RunFolder, kind: str = "faulty") -> Mirror:
    return Mirror(Remote(f"{kind}://{place}/far"), folder)


def published(place: Path, *steps: int, kind: str = "faulty") -> Mirror:
    folder, store = run_with(place, *steps)
    mirror = mirror_at(place, folder, kind)
    for step in steps:
        mirror.publish(step, store.path_of(step))
    return mirror


@pytest.mark.parametrize("kind", ["file", "faulty"])
def test_what_is_published_comes_back_on_another_machine(place: Path, kind: str) -> None:
    assert published(place, 3, 7, kind=kind).steps() == [3, 7]
    there = RunFolder(place / "other")
    assert mirror_at(place, there, kind).fetch() == 7
    assert digest(CheckpointStore(there.checkpoints).load(7)) == digest(state(7))
    assert there.recipe.read_text() == "epochs = 1\n" and there.metrics.read_text() == "abcd\nefgh\n"
    assert names(there.checkpoints) == ["step-00000007"]
    assert mirror_at(place, there, kind).fetch(after=7) is None


def test_a_store_without_folders() -> None:
    with memory_folder() as place:
        folder, store = run_with(place, 5)
        mirror = Mirror(Remote(f"memory://bucket{place}/run"), folder)
        assert mirror.steps() == [] and mirror.fetch() is None
        mirror.publish(5, store.path_of(5))
        assert Mirror(mirror.remote, RunFolder(place / "other")).fetch() == 5
        mirror.retire(1, 0)
        assert mirror.steps() == [5]
        with pytest.raises(CheckpointError, match="another run writes here"):
            mirror.remote.create("checkpoints/step-00000005/MANIFEST.json", b"{}")


def test_the_manifest_goes_last_and_nothing_is_copied_twice(place: Path) -> None:
    folder, store = run_with(place, 4)
    mirror = mirror_at(place, folder)
    with store_with() as done:
        mirror.publish(4, store.path_of(4))
        paths = [path.rpartition("/")[2] for what, path in done if what in ("put", "pipe")]
        assert paths[-1] == "MANIFEST.json" and {"peer0.safetensors", "memory.safetensors", "values.json"} < {*paths}
        done.clear()
        mirror.publish(4, store.path_of(4))
        assert {path.rpartition("/")[2] for what, path in done if what in ("put", "pipe")} == {
            "recipe.toml",
            "environment.json",
            "metrics.jsonl",
        }


@pytest.mark.case(47)
@pytest.mark.parametrize("point", ["mirror-file:1", "mirror-file:2", "mirror-files:1", "mirror-manifest:1"])
def test_a_death_between_files_and_manifest(place: Path, point: str) -> None:
    published(place, 3)
    folder, store = run_with(place, 6)
    ended = run_child(lambda: mirror_at(place, folder).publish(6, store.path_of(6)), crash_at=point)
    assert ended.code == -signal.SIGKILL
    whole = point.startswith("mirror-manifest")
    there = RunFolder(place / "other")
    assert mirror_at(place, there).fetch() == (6 if whole else 3)
    mirror_at(place, folder).publish(6, store.path_of(6))
    assert mirror_at(place, RunFolder(place / "third")).fetch() == 6


@pytest.mark.case(47)
@pytest.mark.parametrize("file", ["peer0.safetensors", "MANIFEST.json", "values.json"])
@pytest.mark.parametrize("damage", ["torn", "flipped", "gone"])
def test_what_is_damaged_there_is_passed_over(place: Path, file: str, damage: str) -> None:
    published(place, 3, 7)
    path = place / "far" / "checkpoints" / "step-00000007" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        cut = content[: len(content) // 2]
        path.write_bytes(cut if damage == "torn" else cut + bytes([content[len(cut)] ^ 1]) + content[len(cut) + 1 :])
    there = RunFolder(place / "other")
    if (file, damage) == ("MANIFEST.json", "gone"):
        assert mirror_at(place, there).fetch() == 3  # it does not exist
    else:
        with pytest.warns(CheckpointWarning, match="step-00000007 in .* is damaged and was passed over"):
            assert mirror_at(place, there).fetch() == 3
    assert names(there.checkpoints) == ["step-00000003"]


@pytest.mark.case(47)
def test_a_torn_upload_is_no_checkpoint(place: Path) -> None:
    published(place, 3)
    folder, store = run_with(place, 6)
    with store_with(torn=("memory.safetensors",)), pytest.raises(CheckpointError, match="connection reset"):
        mirror_at(place, folder).publish(6, store.path_of(6))
    assert mirror_at(place, folder).steps() == [3]
    assert mirror_at(place, RunFolder(place / "other")).fetch() == 3


@pytest.mark.case(82)
def test_a_manifest_that_names_files_elsewhere_fetches_nothing(place: Path) -> None:
    published(place, 3, 7)
    path = place / "far" / "checkpoints" / "step-00000007" / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../stolen.json"] = manifest["files"]["values.json"]
    path.write_text(json.dumps(manifest))
    with pytest.warns(CheckpointWarning, match="only plain"):
        assert mirror_at(place, RunFolder(place / "other")).fetch() == 3
    assert not (place / "stolen.json").exists()


def test_another_state_of_a_step_replaces_the_one_there(place: Path) -> None:
    mirror = published(place, 3, 7)
    other = CheckpointStore(place / "else")
    other.save(7, state(70))
    with store_with() as done:
        mirror.publish(7, other.path_of(7))
    there = RunFolder(place / "other")
    assert mirror_at(place, there).fetch() == 7
    assert digest(CheckpointStore(there.checkpoints).load(7)) == digest(state(70))
    assert done


def test_the_best_is_kept_once(place: Path) -> None:
    folder, store = run_with(place, 3, 6)
    mirror = mirror_at(place, folder)
    for step in (3, 6):
        save_to(folder.best, step - 1, state(step - 1))
        mirror.publish(step, store.path_of(step))
    assert names(place / "far" / "best") == ["step-00000005"]
    there = RunFolder(place / "other")
    mirror_at(place, there).fetch()
    assert digest(load_from(there.best)[1]) == digest(state(5))


def test_the_store_keeps_by_the_same_rule_and_cleans_up(place: Path) -> None:
    mirror = published(place, 100, 200, 250, 300, 400)
    (place / "far" / "checkpoints" / "step-00000350").mkdir()
    (place / "far" / "checkpoints" / "step-00000350" / "peer0.safetensors").write_bytes(b"half")
    mirror.retire(keep=2, every=200)
    assert names(place / "far" / "checkpoints") == [f"step-{step:08d}" for step in (200, 300, 400)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/run", "holds a password"),
        ("nowhere://bucket/run", "cannot be used: Protocol not known"),
    ],
)
def test_addresses_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Remote(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_store_that_cannot_be_reached_is_one_line(place: Path) -> None:
    folder, _ = run_with(place)
    with store_with(failing(9, "ls")), pytest.raises(CheckpointError, match=r"cannot reach faulty://.*no route"):
        mirror_at(place, folder).steps()


def test_a_disk_too_small_for_what_is_fetched(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(place, 3)
    monkeypatch.setattr("coterie.engine.checkpoint_files.free_space", lambda folder: 100)
    with pytest.raises(CheckpointError, match=r"cannot fetch .* 100 are free; make room"):
        mirror_at(place, RunFolder(place / "other")).fetch()


# --- the thread ------------------------------------------------------------------------------------------------------


def uploading(place: Path, *steps: int, keep: int = 2, patience: float = 20.0) -> tuple[Uploads, CheckpointStore]:
    folder, store = run_with(place, *steps, keep=keep)
    return Uploads(mirror_at(place, folder), store, patience=patience), store


def until(fulfilled: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not fulfilled():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def test_failures_are_counted_told_once_and_overcome(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PAUSES", (0.01, 0.02))
    copying, _ = uploading(place, 3)
    with store_with(failing(3)):
        copying.offer(3)
        until(lambda: copying.mirrored == 3)
    assert copying.failures == 3
    with pytest.warns(CheckpointWarning, match="step 3 could not be copied.*no route.*training goes on") as caught:
        copying.close()
    assert len(caught) == 1


@pytest.mark.slow
def test_a_slow_copy_is_held_and_those_it_overtakes_are_left_out(place: Path) -> None:
    copying, store = uploading(place, 1)
    with store_with(slow(0.15)):
        copying.offer(1)
        until(lambda: store.held == 1)
        for step in range(2, 7):
            store.save(step, state(step))
            copying.offer(step)
        assert store.steps() == [1, 5, 6]
        copying.close()
    assert copying.mirrored == 6 and copying.failures == 0
    assert names(place / "far" / "checkpoints") == ["step-00000001", "step-00000006"]
    store.retire(6)
    assert store.steps() == [5, 6]


def test_a_run_that_is_over_does_not_wait_for_a_store_that_is_gone(place: Path) -> None:
    copying, _ = uploading(place, 3)
    began = time.monotonic()
    with store_with(failing(99)):
        copying.offer(3)
        with pytest.warns(CheckpointWarning) as caught:
            copying.close()
    assert time.monotonic() - began < 5
    assert [str(one.message).partition(" ")[0] for one in caught] == ["checkpoint", "the"]
    assert "is of step 0, later ones are in" in str(caught[1].message)


def test_nor_for_one_that_hangs(place: Path) -> None:
    copying, _ = uploading(place, 3, patience=0.1)
    with store_with(slow(0.6)):
        copying.offer(3)
        with pytest.warns(CheckpointWarning) as caught:
            copying.close()
        assert "takes more than 0.1 s" in str(caught[0].message) and "later ones are in" in str(caught[1].message)
        time.sleep(0.7)


def test_nothing_offered_nothing_started(place: Path) -> None:
    copying, _ = uploading(place)
    copying.close()
    copying.close()
