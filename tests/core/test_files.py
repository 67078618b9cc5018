"""Atomic files: old or new, never a part; links are not followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from coterie.core import CheckpointError
from coterie.core.files import (
    RecordWarning,
    finite,
    is_taken,
    open_regular,
    read_json,
    remove_leftovers,
    remove_tree,
    sha256_of,
    unused_path,
    write_json_atomically,
    write_text_atomically,
)
from faults import as_nobody, memory_folder, names, run_child, with_file_limit


def test_json_survives_and_is_strict(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "a.json", {"x": [1, 0.1, None, True], "bad": float("inf"), "name": "Käse"})
    strict = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert strict == {"x": [1, 0.1, None, True], "bad": "inf", "name": "Käse"}
    assert read_json(tmp_path / "a.json") == strict
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("point", ["file-written", "file-renamed"])
def test_a_kill_leaves_the_old_text_or_the_new_one(tmp_path: Path, point: str) -> None:
    path = tmp_path / "status.json"
    write_text_atomically(path, "old" * 1000)
    assert run_child(lambda: write_text_atomically(path, "new"), crash_at=f"{point}:1").code == -9
    assert path.read_text() == ("old" * 1000 if point == "file-written" else "new")


@pytest.mark.case(87)
def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    outside, link = tmp_path / "outside", tmp_path / "link"
    outside.write_text("precious")
    link.symlink_to(outside)
    write_text_atomically(link, "mine")
    assert outside.read_text() == "precious"
    assert link.read_text() == "mine" and not link.is_symlink()


@pytest.mark.case(7)
def test_a_full_disk_keeps_the_old_file_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text_atomically(path, "old")
    ended = run_child(with_file_limit(1000, lambda: write_text_atomically(path, "n" * 5000)))
    assert (ended.code, ended.kind) == (4, "CheckpointError")
    assert str(path) in ended.error and "\n" not in ended.error
    assert path.read_text() == "old" and names(tmp_path) == ["result.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no/such"):
        write_text_atomically(tmp_path / "no" / "such", "x")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing", "."):
        with pytest.raises(CheckpointError, match="cannot read"):
            open_regular(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'{"a": 1} x'])
def test_what_is_no_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="not JSON"):
        read_json(tmp_path / "x.json")


def test_a_huge_json_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b" " * 2000)
    with pytest.raises(CheckpointError, match="larger than 1000 bytes"):
        read_json(tmp_path / "x.json", limit=1000)


def test_hash_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    run = tmp_path / "run"
    (run / ".tmp-step-1-7" / "deep").mkdir(parents=True)
    (run / ".tmp-step-1-7" / "link").symlink_to(outside)
    (run / ".del-link").symlink_to(outside)
    (run / ".bad-step-3").mkdir()
    (run / "step-4").mkdir()
    remove_leftovers(run)
    assert names(run) == [".bad-step-3", "step-4"]
    assert (outside / "precious").read_text() == "x"


def test_what_cannot_be_removed_costs_a_warning() -> None:
    with memory_folder() as folder:
        (folder / "kept" / "inner").mkdir(parents=True)
        ended = run_child(as_nobody(lambda: remove_tree(folder / "kept")))
        assert ended.code == 0
        assert ended.warned[0].startswith(RecordWarning.__name__) and str(folder / "kept") in ended.warned[0]


def test_finite_leaves_the_finite_alone() -> None:
    assert finite({"a": [0.1, {"b": "nan"}], "c": (1, None)}) == {"a": [0.1, {"b": "nan"}], "c": [1, None]}
    assert finite([float("nan"), float("-inf")]) == ["nan", "-inf"]


def test_every_kind_of_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert all(is_taken(tmp_path / name) for name in ("file", "folder", "pipe", "link", "dangling", "loop"))
    assert not is_taken(tmp_path / "gone") and not is_taken(tmp_path / "no" / "folder")


def test_an_unused_path_steps_over_links_that_lead_nowhere(tmp_path: Path) -> None:
    assert unused_path(tmp_path, "run") == tmp_path / "run"
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    (tmp_path / "run-1").mkdir()
    assert unused_path(tmp_path, "run") == tmp_path / "run-2"
