"""Checkpoints on disk: what is written, what is refused, and what happens to damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core import CheckpointError, ConfigError
from coterie.core.files import RecordWarning, sha256_of
from coterie.engine import checkpoint_files
from coterie.engine.checkpoint import CheckpointStore, CheckpointWarning, load_from, save_to
from coterie.engine.snapshot import Snapshot, digest
from faults import as_nobody, memory_folder, names, run_child, with_file_limit


def make(number: int = 0) -> Snapshot:
    everything = torch.arange(12.0) + number
    return Snapshot(
        tensors={
            "peer0": {"w": everything.view(3, 4).t(), "same": everything, "half": everything.to(torch.bfloat16)},
            "peer1.optim": {
                "w/step": torch.tensor(float(number)),
                "empty": torch.zeros(0, 3),
                "flag": torch.ones(2) > 0,
            },
            "rng": {"torch": torch.arange(7, dtype=torch.uint8)},
        },
        values={"epoch": number, "best": float("-inf"), "rate": 0.1 + 0.2, "names": ["nan", "ü"], "none": None},
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def store(folder: Path) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints")
    for step in (1, 2, 3):
        store.save(step, make(step))
    return store


def forge(folder: Path, **changes: object) -> None:
    """Rewrite the manifest of a checkpoint so that it fits its files again, with some entries changed."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, **changes}))


def test_everything_comes_back_to_the_bit(store: CheckpointStore) -> None:
    found = store.load_newest()
    assert found and found[0] == 3
    assert digest(found[1]) == digest(make(3))
    assert found[1].values == make(3).values
    assert found[1].section("peer0")["half"].dtype is torch.bfloat16


def test_a_fresh_folder_holds_nothing(folder: Path) -> None:
    assert CheckpointStore(folder / "none").load_newest() is None


@pytest.mark.case(44)
def test_the_newest_by_number_are_kept_whatever_the_clock_says(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints", keep=3)
    for step, now in ((9, 4e9), (10, 3e9), (11, 0.0), (100_000_000, 1e9), (12, 2e9)):
        store.save(step, make(step), now=now)
    assert store.steps() == [11, 12, 100_000_000]
    assert store.load_newest()[0] == 100_000_000
    assert json.loads((store.path_of(11) / "MANIFEST.json").read_text())["saved"] == "1970-01-01T00:00:00Z"


@pytest.mark.case(44)
def test_every_so_many_are_kept_for_good_whatever_the_clock_says(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints", keep=2, keep_every=100)
    for step in range(30, 400, 30):
        store.save(step, make(step), now=4e9 - step)
    assert store.steps() == [120, 210, 300, 360, 390]
    other = CheckpointStore(folder / "checkpoints", keep=2)
    other.save(420, make(420))
    assert other.steps() == [390, 420]


def test_the_one_just_saved_is_never_retired(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints")
    for step in (8, 9):
        store.save(step, make(step))
        (store.path_of(step) / "values.json").unlink()
    store.save(6, make(6))
    assert store.steps() == [6, 8, 9]
    with pytest.warns(CheckpointWarning):
        assert store.load_newest()[0] == 6


def test_a_step_that_is_held_stays_until_it_is_let_go(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints")
    store.save(1, make(1))
    store.held = 1
    for step in (2, 3, 4):
        store.save(step, make(step))
    assert store.steps() == [1, 3, 4]
    store.held = -1
    store.save(5, make(5))
    assert store.steps() == [4, 5]


def test_what_cannot_be_removed_costs_a_warning_and_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(folder / "checkpoints")
    for step in (1, 2):
        store.save(step, make(step))
    with monkeypatch.context() as patch, pytest.warns(RecordWarning, match="could not be removed"):

        def refuse(self: Path, target: Path) -> Path:
            if ".del-" in target.name:
                raise PermissionError(1, "Operation not permitted")
            return rename(self, target)

        rename = Path.rename
        patch.setattr(Path, "rename", refuse)
        store.save(3, make(3))
    assert store.steps() == [1, 2, 3] and store.load_newest()[0] == 3
    store.save(4, make(4))
    assert store.steps() == [3, 4]


def test_fewer_than_two_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least 2"):
        CheckpointStore(folder, keep=1)


def test_manifest_names_every_file_with_size_and_hash(store: CheckpointStore) -> None:
    newest = store.path_of(3)
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    assert manifest["format"] == 1 and manifest["step"] == 3 and manifest["torch"] == torch.__version__
    assert sorted([*manifest["files"], "MANIFEST.json"]) == names(newest)
    for name, entry in manifest["files"].items():
        assert entry == {"size": (newest / name).stat().st_size, "sha256": sha256_of(newest / name)}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(folder: Path, mask: int) -> None:
    def save() -> None:
        os.umask(mask)
        CheckpointStore(folder / "checkpoints").save(1, make())

    assert run_child(save).code == 0
    saved = folder / "checkpoints" / "step-00000001"
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o666 & ~mask}


def test_saving_an_equal_step_again_writes_nothing(store: CheckpointStore) -> None:
    before = (store.path_of(3) / "MANIFEST.json").stat().st_ino
    store.save(3, make(3))
    assert (store.path_of(3) / "MANIFEST.json").stat().st_ino == before
    assert names(store.folder) == ["step-00000002", "step-00000003"]


def test_saving_another_state_of_a_step_replaces_it(store: CheckpointStore) -> None:
    store.save(3, make(30))
    assert digest(store.load(3)) == digest(make(30))
    assert names(store.folder) == ["step-00000002", "step-00000003"]


def test_a_damaged_step_is_set_aside_when_it_is_saved_again(store: CheckpointStore) -> None:
    (store.path_of(3) / "values.json").unlink()
    with pytest.warns(CheckpointWarning, match=r"values\.json"):
        store.save(3, make(3))
    assert names(store.folder) == [".bad-step-00000003", "step-00000002", "step-00000003"]
    assert store.load_newest()[0] == 3


def truncate(path: Path) -> None:
    os.truncate(path / "peer0.safetensors", 50)


def flip(path: Path) -> None:
    content = bytearray((path / "peer0.safetensors").read_bytes())
    content[-3] ^= 4
    (path / "peer0.safetensors").write_bytes(content)


def lose(path: Path) -> None:
    (path / "peer0.safetensors").unlink()


def empty_manifest(path: Path) -> None:
    os.truncate(path / "MANIFEST.json", 0)


def garble_manifest(path: Path) -> None:
    (path / "MANIFEST.json").write_bytes(os.urandom(300))


def lose_manifest(path: Path) -> None:
    (path / "MANIFEST.json").unlink()


def flip_values(path: Path) -> None:
    text = (path / "values.json").read_text()
    (path / "values.json").write_text(text.replace("0.3", "0.4"))


def other_step(path: Path) -> None:
    forge(path, step=7)


def become_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def file_becomes_link(path: Path) -> None:
    (path / "peer0.safetensors").rename(path.parent / "elsewhere")
    (path / "peer0.safetensors").symlink_to(path.parent / "elsewhere")


def file_becomes_pipe(path: Path) -> None:
    lose(path)
    os.mkfifo(path / "peer0.safetensors")


def become_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"peer0\.safetensors has 50 bytes"),
    "flipped": (flip, r"peer0\.safetensors has SHA-256"),
    "lost": (lose, r"peer0\.safetensors: No such file"),
    "empty_manifest": (empty_manifest, r"MANIFEST\.json is not JSON"),
    "garbled_manifest": (garble_manifest, r"MANIFEST\.json is not JSON"),
    "lost_manifest": (lose_manifest, r"MANIFEST\.json: No such file"),
    "values": (flip_values, r"values\.json has SHA-256"),
    "step": (other_step, "of step 7"),
    "link": (become_link, "symbolic link"),
    "file_link": (file_becomes_link, r"peer0\.safetensors: Too many levels of symbolic links"),
    "pipe": (file_becomes_pipe, "not a regular file"),
    "file": (become_file, "a checkpoint is a folder"),
}


@pytest.mark.case(4)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_kept_and_the_previous_is_used(store: CheckpointStore, damage: str) -> None:
    hurt, message = DAMAGE[damage]
    hurt(store.path_of(3))
    with pytest.warns(CheckpointWarning, match=f"step 3 .*bad-step-00000003: .*{message}") as caught:
        step, snapshot = store.load_newest()
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert step == 2 and digest(snapshot) == digest(make(2))
    assert [name for name in names(store.folder) if name != "elsewhere"] == [".bad-step-00000003", "step-00000002"]
    store.save(3, make(3))
    assert store.load_newest()[0] == 3


def test_reading_only_changes_nothing(store: CheckpointStore) -> None:
    flip(store.path_of(3))
    before = names(store.folder)
    with pytest.warns(CheckpointWarning, match="passed over"):
        step, _ = store.load_newest(read_only=True)
    assert step == 2 and names(store.folder) == before
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_from(store.path_of(3))
    assert names(store.folder) == before


@pytest.mark.case(5)
def test_when_all_are_damaged_none_is_touched_and_all_are_listed(store: CheckpointStore) -> None:
    truncate(store.path_of(3))
    lose_manifest(store.path_of(2))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"50 bytes.*step-00000002.*--fresh") as caught:
            store.load_newest()
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    store.set_all_aside()
    assert store.load_newest() is None
    assert names(store.folder) == [".aside-step-00000002", ".aside-step-00000003"]


@pytest.mark.case(72)
def test_a_newer_format_stops_instead_of_going_back(store: CheckpointStore) -> None:
    forge(store.path_of(3), format=9)
    with pytest.raises(CheckpointError, match="was written by format 9, this version reads up to 1; upgrade coterie"):
        store.load_newest()
    assert store.steps() == [2, 3]


@pytest.mark.case(82)
@pytest.mark.parametrize(
    "name", ["../../x.json", "/etc/x.json", "a/b.json", "x.pt", "..", ".json", "x.json\n", "\0.json"]
)
def test_names_that_leave_the_folder_are_refused(store: CheckpointStore, name: str) -> None:
    manifest = json.loads((store.path_of(3) / "MANIFEST.json").read_text())
    (store.folder.parent / "x.json").write_text("{}")
    manifest["files"][name] = {"size": 2, "sha256": sha256_of(store.folder.parent / "x.json")}
    (store.path_of(3) / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="only plain") as caught:
        load_from(store.path_of(3))
    assert "\n" not in str(caught.value)


@pytest.mark.case(82)
@pytest.mark.parametrize("stem", ["../x", "a/b", "", ".hidden"])
def test_names_that_leave_the_folder_are_not_written(folder: Path, stem: str) -> None:
    with pytest.raises(CheckpointError, match="cannot hold"):
        CheckpointStore(folder / "inner").save(1, Snapshot(tensors={stem: {"w": torch.ones(1)}}))
    assert names(folder) == ["inner"] and names(folder / "inner") == []


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.case(76, 77)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_with_another_name_is_refused_and_not_run(store: CheckpointStore, kind: str) -> None:
    marker, target = store.folder.parent / "marker", store.path_of(3) / "peer0.safetensors"
    if kind == "pickle":
        target.write_bytes(pickle.dumps(Malice(marker)))
    else:
        torch.save({"w": Malice(marker)}, target)
    forge(store.path_of(3))
    with pytest.raises(CheckpointError, match=r"is a pickle, .* in a sandbox"):
        load_from(store.path_of(3))
    assert not marker.exists()


@pytest.mark.parametrize("head", [b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK"])
def test_a_header_whose_size_looks_like_a_pickle_is_none(folder: Path, head: bytes) -> None:
    size = int.from_bytes(head, "little")  # the file begins with the size of its header
    names = (f"{'w' * (size - rest)}" for rest in range(60, 90))
    name = next(name for name in names if safetensors.torch.save({name: torch.ones(1)}).startswith(head))
    save_to(folder / "best", 1, Snapshot(tensors={"peer0": {name: torch.ones(1)}}))
    assert (folder / "best" / "peer0.safetensors").read_bytes().startswith(head)
    assert torch.equal(load_from(folder / "best")[1].section("peer0")[name], torch.ones(1))


@pytest.mark.case(76)
def test_a_pickle_instead_of_a_folder_is_refused(folder: Path) -> None:
    torch.save({"w": torch.ones(1)}, folder / "best.pt")
    with pytest.raises(CheckpointError, match=r"is a file and a checkpoint is a folder; pickles .* never loaded"):
        load_from(folder / "best.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_from(folder / "nothing")


HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
HOLE = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
HUGE = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'


@pytest.mark.case(77)
@pytest.mark.parametrize(
    "content",
    {
        "giant header": struct.pack("<Q", 1 << 60) + HEADER,
        "trailing bytes": struct.pack("<Q", len(HEADER)) + HEADER + bytes(9),
        "hole": struct.pack("<Q", len(HOLE)) + HOLE + bytes(12),
        "tensor of 4 TB": struct.pack("<Q", len(HUGE)) + HUGE + bytes(8),
        "empty": b"",
        "text": b"hello",
    }.values(),
)
def test_malformed_safetensors_with_right_hashes_are_refused(store: CheckpointStore, content: bytes) -> None:
    (store.path_of(3) / "peer0.safetensors").write_bytes(content)
    forge(store.path_of(3))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_from(store.path_of(3))


@pytest.mark.parametrize("text", ["[]", "nonsense", "3"])
def test_values_must_be_an_object(store: CheckpointStore, text: str) -> None:
    (store.path_of(3) / "values.json").write_text(text)
    forge(store.path_of(3))
    with pytest.raises(CheckpointError, match=r"values\.json is not"):
        load_from(store.path_of(3))


@pytest.mark.case(75)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_manifest_is_read_or_refused(data: st.DataObject) -> None:
    with memory_folder() as folder:
        save_to(folder / "one", 1, make())
        path = folder / "one" / "MANIFEST.json"
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        else:
            wild = st.recursive(
                st.none() | st.floats() | st.integers() | st.text(),
                lambda x: st.lists(x) | st.dictionaries(st.text(), x),
            )
            field = data.draw(st.sampled_from(["format", "step", "files", "other"]))
            content = bytearray(json.dumps({**json.loads(content), field: data.draw(wild)}).encode())
        path.write_bytes(content)
        try:
            _, snapshot = load_from(folder / "one")
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert digest(snapshot) == digest(make())


@pytest.mark.case(7)
def test_a_full_disk_is_noticed_before_writing(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "free_space", lambda folder: 10)
    with pytest.raises(CheckpointError, match=r"cannot save step 4 .*checkpoints.*\d+ bytes needed and 10 free"):
        store.save(4, make(4))
    assert names(store.folder) == ["step-00000002", "step-00000003"]
    assert digest(store.load(3)) == digest(make(3))


@pytest.mark.case(7)
@pytest.mark.parametrize("limit", [0, 100, 300, 500])
def test_a_disk_that_fills_in_mid_save_harms_nothing(store: CheckpointStore, limit: int) -> None:
    ended = run_child(with_file_limit(limit, lambda: store.save(4, make(4))))
    assert (ended.code, ended.kind) == (4, "CheckpointError")
    assert str(store.folder) in ended.error and "free" in ended.error and "\n" not in ended.error
    assert names(store.folder) == ["step-00000002", "step-00000003"]
    assert digest(store.load(3)) == digest(make(3))
    store.save(4, make(4))
    assert store.load_newest()[0] == 4


def test_a_folder_that_may_not_be_read_is_no_damage(store: CheckpointStore) -> None:
    (store.path_of(3) / "peer0.safetensors").chmod(0)
    ended = run_child(as_nobody(lambda: store.load_newest()[0]))
    assert ended.code == 4 and "Permission denied" in ended.error
    assert store.steps() == [2, 3]


@pytest.mark.case(87)
def test_a_linked_folder_of_checkpoints_is_refused(folder: Path) -> None:
    (folder / "outside").mkdir()
    (folder / "checkpoints").symlink_to(folder / "outside")
    for act in (lambda s: s.save(1, make()), lambda s: s.load_newest()):
        with pytest.raises(CheckpointError, match="symbolic link"):
            act(CheckpointStore(folder / "checkpoints"))
    assert names(folder / "outside") == []


@pytest.mark.case(87)
def test_a_linked_checkpoint_is_retired_without_its_target(store: CheckpointStore) -> None:
    outside = store.folder.parent / "outside"
    store.path_of(2).rename(outside)
    store.path_of(2).symlink_to(outside)
    store.save(4, make(4))
    assert names(store.folder) == ["step-00000003", "step-00000004"]
    assert load_from(outside)[0] == 2


def test_the_best_is_replaced_at_its_place(folder: Path) -> None:
    best = folder / "best"
    for number in (4, 9, 2):
        save_to(best, number, make(number))
        step, snapshot = load_from(best)
        assert (step, digest(snapshot)) == (number, digest(make(number)))
        assert names(folder) == ["best"]


def test_a_save_is_about_as_fast_as_its_bytes(folder: Path) -> None:
    snapshot = Snapshot(tensors={f"peer{m}": {"w": torch.randn(1 << 20)} for m in range(4)})
    begin = time.perf_counter()
    CheckpointStore(folder / "checkpoints").save(1, snapshot)
    assert time.perf_counter() - begin < 1.0  # 16 MiB: some 50 ms for writing and hashing
    files = (folder / "checkpoints" / "step-00000001").glob("*.safetensors")
    assert sum(path.stat().st_size for path in files) < 1.001 * snapshot.num_bytes
