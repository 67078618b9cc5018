"""The courier between a job and the place of exchange: what it brings, what it refuses, and when the place is down."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.core.errors import ConfigError
from coterie.engine.blobs import HEADER_LIMIT, Expected, Refused, encode, layout_of, parse_name
from coterie.engine.courier import Courier, Parcel, Route, fetch
from coterie.engine.places import FolderPlace, ObjectPlace, Place, open_place
from faults import as_nobody, memory_folder, run_child
from strangers import FACTS, Prompt, flip, forged, soon, speak, tensors, write

EXPECTED = Expected(kind="weights", layouts={"net": layout_of(tensors())}, facts={"classes": "c"})


def route_to(place: Place, job: str = "a", **options: Any) -> Route:
    settings = {"partners": (), "most": 4, "max_age": 100, "keep": 2, "expected": EXPECTED, **options}
    return Route(place=place, job=job, **settings)


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path) -> Path:
    (tmp_path / "x").mkdir()
    return tmp_path / "x"


@pytest.fixture(name="courier")
def make_courier(folder: Path) -> Iterator[Prompt]:
    made = Prompt(route_to(FolderPlace(folder)))
    made.begin({}, anew=True)
    yield made
    made.close(1.0)


def blob(step: int = 5, job: str = "b") -> bytes:
    return encode(tensors(), job=job, step=step, kind="weights", facts=FACTS)


def look(courier: Courier, step: int = 10) -> tuple[list[str], list[str]]:
    """Blobs that arrive and reasons of those that are refused."""
    courier.look(step)
    arrivals, events = courier.collect(step)
    return [arrival.name.brief for arrival in arrivals], [event.reason for event in events if event.what == "refused"]


def jobs_in(folder: Path) -> list[str]:
    return sorted(name.brief for path in folder.iterdir() if (name := parse_name(path.name)))


# what arrives


def test_one_job_hears_the_other(folder: Path, courier: Prompt) -> None:
    other = Prompt(route_to(FolderPlace(folder), job="b"))
    other.begin({}, anew=True)
    other.send(Parcel(7, tensors(0.25), FACTS))
    courier.look(10)
    (arrival,), events = courier.collect(10)
    assert (arrival.name.job, arrival.name.step, arrival.net) == ("b", 7, "net")
    assert torch.equal(arrival.tensors["weight"], tensors(0.25)["weight"])
    assert [event.what for event in events] == ["fetched"]
    assert courier.collect(10) == ([], []), "nothing arrives twice"
    assert look(courier) == ([], []), "nor is it fetched twice"
    other.close(1.0)
    assert [path.name[0] for path in folder.iterdir()] == ["b"], "nothing but the blob is left"


def test_own_blobs_old_ones_and_other_files_are_left_alone(folder: Path, courier: Prompt) -> None:
    speak(folder, "b", 10, tensors())
    (folder / "notes.txt").write_text("hello")
    courier.send(Parcel(300, tensors(), FACTS))
    assert look(courier, 110) == ([], []), "100 batches behind is too old"
    assert look(courier, 109)[0][0].startswith("b-00000010")


def test_the_newest_is_heard_and_one_that_starts_again_too(folder: Path, courier: Prompt) -> None:
    speak(folder, "b", 20, tensors())
    newest = speak(folder, "b", 40, tensors())
    assert look(courier, 50)[0][0].startswith("b-00000040")
    newest.unlink()
    (folder / next(name for name in map(str, folder.iterdir()))).unlink()
    speak(folder, "b", 1, tensors())
    assert look(courier, 50)[0][0].startswith("b-00000001")


def test_named_partners_only_and_no_more_than_asked_for(folder: Path) -> None:
    for job in "bcdefg":
        speak(folder, job, 5, tensors())
    named = Prompt(route_to(FolderPlace(folder), partners=("c", "e")))
    found = Prompt(route_to(FolderPlace(folder), most=3))
    for courier, expected in ((named, "ce"), (found, "bcd")):
        courier.begin({}, anew=False)
        assert "".join(brief[0] for brief in look(courier)[0]) == expected
        courier.close(1.0)


def test_a_resumed_job_does_not_fetch_what_it_has(folder: Path) -> None:
    name = speak(folder, "b", 5, tensors()).name
    courier = Prompt(route_to(FolderPlace(folder)))
    courier.begin({"b": name}, anew=False)
    assert look(courier) == ([], [])
    courier.close(1.0)


# what is published and retired


def test_the_newest_own_blobs_are_kept_and_nobody_elses_removed(folder: Path, courier: Prompt) -> None:
    for step in (1, 2, 3):
        speak(folder, "b", step, tensors(step))
        courier.send(Parcel(step, tensors(step), FACTS))
    left = [("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]
    assert [brief[:10] for brief in jobs_in(folder)] == [f"{job}-{step:08d}" for job, step in left]


def test_all_own_blobs_are_kept_with_0(folder: Path) -> None:
    courier = Prompt(route_to(FolderPlace(folder), keep=0))
    courier.begin({}, anew=True)
    for step in range(5):
        courier.send(Parcel(step, tensors(), FACTS))
    courier.close(1.0)
    assert len(jobs_in(folder)) == 5


@pytest.mark.parametrize(("anew", "left"), [(True, 1), (False, 3)])
def test_a_run_that_begins_anew_withdraws_what_it_said(folder: Path, anew: bool, left: int) -> None:
    for job, step in (("a", 500), ("a", 600), ("a-b", 700)):
        speak(folder, job, step, tensors())
    torn = folder / f".tmp-{speak(folder, 'a', 800, tensors()).name}"
    (folder / torn.name.removeprefix(".tmp-")).rename(torn)
    others = folder / f".tmp-{parse_name(next(p.name for p in folder.iterdir() if p.name.startswith('a-b')))}"
    others.touch()
    courier = Prompt(route_to(FolderPlace(folder)))
    courier.begin({}, anew=anew)
    courier.look(0)
    courier.close(1.0)
    assert len(jobs_in(folder)) == left and not torn.exists() and others.exists()


def test_a_second_job_of_the_own_name_is_noticed(folder: Path, courier: Prompt) -> None:
    courier.send(Parcel(1, tensors(), FACTS))
    assert look(courier) == ([], [])
    speak(folder, "a", 2, tensors(0.1))
    courier.look(10)
    (event,) = (event for event in courier.collect(10)[1] if event.what == "refused")
    assert event.reason == "name" and "give each job its own exchange.job" in event.line


# what is refused

WRONG = {
    "hash": lambda folder: flip(write(folder, blob(), "b", 5)),
    "false hash": lambda folder: write(folder, blob(), "b", 5, sha256="0" * 64),
    "torn": lambda folder: write(folder, blob()[:-5], "b", 5),
    "torn, hash of the whole": lambda folder: write(
        folder, blob()[:40], "b", 5, sha256=str(parse_name(write(folder / "y", blob(), "b", 5).name).sha256)
    ),
    "empty": lambda folder: write(folder, b"", "b", 5),
    "trailing bytes": lambda folder: write(folder, blob() + b"more", "b", 5),
    "shape": lambda folder: speak(folder, "b", 5, {**tensors(), "weight": torch.zeros(2, 3)}),
    "type": lambda folder: speak(folder, "b", 5, {**tensors(), "weight": torch.zeros(3, 2, dtype=torch.float64)}),
    "missing tensor": lambda folder: speak(folder, "b", 5, {"weight": torch.zeros(3, 2)}),
    "foreign tensor": lambda folder: speak(folder, "b", 5, {**tensors(), "more": torch.zeros(1)}),
    "unknown network": lambda folder: speak(folder, "b", 5, tensors(), {**FACTS, "net": "os.system"}),
    "other classes": lambda folder: speak(folder, "b", 5, tensors(), {**FACTS, "classes": "d"}),
    "not finite": lambda folder: speak(folder, "b", 5, {**tensors(), "weight": torch.full((3, 2), float("nan"))}),
    "predictions": lambda folder: speak(folder, "b", 5, tensors(), kind="predictions"),
    "another's words": lambda folder: write(folder, blob(job="c"), "b", 5),
    "newer format": lambda folder: forged(blob(), lambda h: h["__metadata__"].update(format="9"), "b", 5, folder),
    "overlapping tensors": lambda folder: forged(
        blob(), lambda h: h["weight"].update(data_offsets=[0, 24]), "b", 5, folder
    ),
    "pickle": lambda folder: write(folder, b"\x80\x04\x95" + bytes(60), "b", 5),
    "header that is a list": lambda folder: write(folder, (2).to_bytes(8, "little") + b"[]", "b", 5),
    "header of nonsense": lambda folder: write(folder, (9).to_bytes(8, "little") + b'{"a": [[[', "b", 5),
}
REASONS = {"false hash": "hash", "torn, hash of the whole": "torn", "empty": "torn", "trailing bytes": "torn",
           "type": "shape", "missing tensor": "shape", "foreign tensor": "shape", "unknown network": "network",
           "other classes": "classes", "not finite": "numbers", "predictions": "kind", "another's words": "name",
           "newer format": "format", "overlapping tensors": "torn", "pickle": "torn", "header that is a list": "torn",
           "header of nonsense": "torn"}  # fmt: skip


@pytest.mark.case(45, 86)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_blob_is_refused_named_and_the_one_before_is_used(folder: Path, courier: Prompt, fault: str) -> None:
    good = speak(folder, "b", 3, tensors())
    bad = WRONG[fault](folder)
    courier.look(10)
    (arrival,), events = courier.collect(10)
    assert str(arrival.name) == good.name
    (event,) = (event for event in events if event.what == "refused")
    assert (event.job, event.reason) == ("b", REASONS.get(fault, fault))
    assert parse_name(bad.name).brief in event.line and "job b" in event.line and "\n" not in event.line
    assert bad.exists() and look(courier) == ([], []), "it is left, and told once"


def test_a_link_is_not_followed(folder: Path, courier: Prompt, tmp_path: Path) -> None:
    outside = write(tmp_path / "elsewhere", blob(), "b", 5)
    (folder / outside.name).symlink_to(outside)
    assert look(courier) == ([], [])
    with pytest.raises(Exception, match="cannot read"):
        FolderPlace(folder).read(outside.name, 0, 8)


class Counting(FolderPlace):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, name: str, start: int, end: int) -> bytes:
        content = super().read(name, start, end)
        self.taken += len(content)
        return content


def refusal(folder: Path, path: Path, size: int = 0) -> tuple[str, int]:
    place = Counting(folder)
    with pytest.raises(Refused) as caught:
        fetch(route_to(place), parse_name(path.name), size or path.stat().st_size)
    return caught.value.reason, place.taken


@pytest.mark.case(86)
def test_a_huge_tensor_is_refused_from_its_header(folder: Path) -> None:
    def claim(header: dict[str, Any]) -> None:
        header["weight"].update(shape=[1_000_000, 1_000_000], data_offsets=[0, 4 * 10**12])

    path = forged(blob(), claim, "b", 5, folder)
    reason, taken = refusal(folder, path)
    assert reason == "shape" and taken <= path.stat().st_size


@pytest.mark.case(86)
def test_a_blob_as_large_as_it_claims_is_refused_unread(folder: Path) -> None:
    assert refusal(folder, write(folder, blob(), "b", 5), size=4 * 10**12) == ("size", 0)


@pytest.mark.case(86)
def test_the_body_of_a_blob_with_a_wrong_header_is_not_read(folder: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "1", "job": "b", "step": "5", "kind": "weights", "classes": "c",
                                          "net": "resnet1202"}})  # fmt: skip
    path = write(folder, len(header).to_bytes(8, "little") + header.encode() + bytes(1 << 20), "b", 5)
    reason, taken = refusal(folder, path)
    assert reason == "network" and taken == 8 + 8 + len(header)


def test_a_long_header_is_refused_unread(folder: Path) -> None:
    path = write(folder, (HEADER_LIMIT + 1).to_bytes(8, "little") + bytes(64), "b", 5)
    assert refusal(folder, path, size=HEADER_LIMIT + 40) == ("size", 8)
    assert refusal(folder, path) == ("torn", 8)


@pytest.mark.case(75)
def test_random_bytes_are_refused_and_nothing_else(folder: Path) -> None:
    sound, draw = blob(), torch.Generator().manual_seed(1)
    for _ in range(300):
        content = bytearray(sound)
        for _ in range(int(torch.randint(1, 4, (), generator=draw))):
            place = int(torch.randint(0, len(content), (), generator=draw))
            content[place] = int(torch.randint(0, 256, (), generator=draw))
        cut = bytes(content[: int(torch.randint(1, len(content) + 1, (), generator=draw))])
        if cut == sound:
            continue
        path = write(folder, cut, "b", 5)
        with contextlib.suppress(Refused):
            fetch(route_to(FolderPlace(folder)), parse_name(path.name), len(cut))
        path.unlink()


@pytest.mark.parametrize("name", ["../b-00000005", "B-00000005", "b/c-00000005", "b-5", "-00000005"])
def test_names_that_are_no_names(name: str) -> None:
    assert parse_name(f"{name}-weights-{'0' * 64}.safetensors") is None


# the place is down


@pytest.mark.case(46)
def test_a_folder_that_is_gone_for_a_while(folder: Path, courier: Prompt) -> None:
    away = folder.rename(folder.with_name("away"))
    courier.look(10)
    courier.send(Parcel(1, tensors(), FACTS))
    courier.send(Parcel(2, tensors(), FACTS))
    _, events = courier.collect(10)
    failed = [event for event in events if event.what == "error"]
    assert {event.reason for event in failed} == {"look", "publish"}
    assert sum(bool(event.line) for event in failed) == 2, "one line for each errand, however often it is tried"
    assert not folder.exists(), "it is not made anew: it may be a mount that has gone"
    speak(away, "b", 5, tensors())
    away.rename(folder)
    soon(lambda: any(path.name.startswith("a-00000002") for path in folder.iterdir()))
    arrivals, told = [], set()

    def all_told() -> bool:
        found, events = courier.collect(10)
        arrivals.extend(found)
        told.update(event.what for event in events)
        return told >= {"back", "published", "fetched"}

    soon(all_told)
    assert [arrival.name.job for arrival in arrivals] == ["b"]
    assert not [path for path in folder.iterdir() if path.name.startswith("a-00000001")], "the newest is said"


@pytest.mark.case(46)
def test_a_folder_that_may_only_be_read() -> None:
    with memory_folder() as base:
        folder = base / "x"
        speak(folder, "b", 5, tensors())
        folder.chmod(0o555)

        def work() -> list[Any]:
            courier = Prompt(route_to(FolderPlace(folder)))
            courier.begin({}, anew=True)
            courier.send(Parcel(1, tensors(), FACTS))
            courier.look(10)
            arrivals, events = courier.collect(10)
            return [[arrival.name.job for arrival in arrivals], [event.what for event in events], events[0].line]

        heard, events, line = run_child(as_nobody(work)).value
    assert heard == ["b"] and sorted(set(events)) == ["error", "fetched"]
    assert "cannot publish" in line and "ermission" in line


@pytest.mark.slow
def test_a_place_that_does_not_answer_is_told_of_and_left_behind(folder: Path) -> None:
    class Silent(FolderPlace):
        def sizes(self) -> dict[str, int]:
            soon(lambda: not folder.exists(), 30)
            return {}

    courier = Courier(route_to(Silent(folder), timeout=0.05))
    courier.begin({}, anew=False)
    courier.look(1)
    lines: list[str] = []
    soon(lambda: lines.extend(event.line for event in courier.collect(1)[1]) or lines)
    assert "has not answered" in lines[0]
    courier.close(0.1)
    folder.rmdir()
    courier._thread.join(5)
    assert not courier._thread.is_alive()


def test_a_folder_that_cannot_be_made_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make exchange\.folder"):
        Courier(route_to(FolderPlace(tmp_path / "file" / "x"))).begin({}, anew=True)


# object stores


def test_an_object_store() -> None:
    place = open_place(f"memory://{uuid.uuid4().hex}/jobs")
    one, other = (Prompt(route_to(place, job=job)) for job in "ab")
    for courier in (one, other):
        courier.begin({}, anew=True)
    for step in (3, 4, 5):
        other.send(Parcel(step, tensors(step), FACTS))
    one.look(6)
    (arrival,), events = one.collect(6)
    assert arrival.name.step == 5 and [event.what for event in events] == ["fetched"]
    assert len(place.sizes()) == 2, "two are kept"
    name = str(arrival.name)
    assert place.read(name, 2, 6) == place.read(name, 0, 10**9)[2:6]
    place.remove(name)
    place.remove(name)
    with pytest.raises(FileNotFoundError):
        place.read(name, 0, 8)
    for courier in (one, other):
        courier.close(1.0)


@pytest.mark.parametrize(
    ("url", "words"),
    [("nonsense://x", "cannot be opened"), ("s3://key:secret@bucket/x", "credentials"), ("https://u:p@x.y", "credent")],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_place(url)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.case(46)
def test_a_bucket_whose_server_goes_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    server_kind = pytest.importorskip("moto.server").ThreadedMotoServer
    pytest.importorskip("s3fs")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the courier tries again, its client need not
    server = server_kind(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    place = ObjectPlace("s3://jobs/x")
    place.files.mkdir("jobs")
    courier = Prompt(route_to(place))
    request.addfinalizer(lambda: courier.close(1.0))  # its client draws from Python's generator as long as it tries
    courier.begin({}, anew=True)
    courier.send(Parcel(1, tensors(), FACTS))
    assert [event.what for event in courier.collect(1)[1]] == ["published"]
    server.stop()
    courier.send(Parcel(2, tensors(), FACTS))
    assert courier.collect(2)[1][0].what == "error"
    again = server_kind(ip_address="127.0.0.1", port=port, verbose=False)
    again.start()
    request.addfinalizer(again.stop)
    events: list[str] = []
    soon(lambda: events.extend(event.what for event in courier.collect(2)[1]) or "published" in events, 120)
    other = Prompt(route_to(ObjectPlace("s3://jobs/x"), job="b"))
    other.begin({}, anew=True)
    other.look(3)
    assert [arrival.name.step for arrival in other.collect(3)[0]] == [2]
    other.close(1.0)
