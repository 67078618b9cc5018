"""Whole jobs that learn from each other through a folder: partners come, lag, die and lie, and training goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.cli import main
from coterie.config import Recipe
from coterie.core import CheckpointError, ConfigError, DataError
from coterie.core.method import METHODS
from coterie.core.record import RunFolder, read_metrics
from coterie.engine import CheckpointStore
from coterie.engine.blobs import encode, parse_name
from coterie.engine.exchange import ExchangeWarning
from coterie.experiment import Experiment, exchanging
from coterie.experiment.exchanging import check_exchange
from coterie.experiment.plan import make_plan
from coterie.nets import NETS
from faults import fork, memory_folder, wait
from ranks import in_ranks, on_mesh
from ranks import train as train_precisely
from strangers import Prompt, flip, forged, soon, speak, write
from tiny import run_in_pieces, stop_after, tiny

BATCHES = 6  # of an epoch
STEPS = 4 * BATCHES


@pytest.fixture(name="prompt")
def make_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanging, "Courier", Prompt)


def recipe(folder: Path, job: str = "a", **settings: object) -> Recipe:
    base = {"epochs": 4, "data__validation": 0, "method__burn_in": 0, "train__log_every": 1, "train__threads": 1,
            "exchange__every": 2, "exchange__max_age": 12}  # fmt: skip
    return tiny("codistillation_jobs", **{"exchange__folder": folder, "exchange__job": job, **base, **settings})


def train(folder: Path, made: Recipe, **options: bool) -> dict[str, Any]:
    return Experiment(made, folder=folder, name="tiny", quiet=True).train(**options)


def facts_of(folder: Path) -> dict[str, str]:
    """Words beside the tensors of a blob, from one that a job has published."""
    content = next(path for path in folder.iterdir() if parse_name(path.name)).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {key: header["__metadata__"][key] for key in ("net", "classes", "data") if key in header["__metadata__"]}


def weights(seed: int = 7, net: str = "cnn4_w4") -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETS[net](num_classes=4, in_channels=3, image_size=8).state_dict()


@pytest.fixture(name="place")
def make_place(tmp_path: Path, prompt: None) -> Path:
    """A place at which job `b` says something at step 30, so that it is trusted throughout."""
    place = tmp_path / "x"
    train(tmp_path / "first", recipe(place, "first", epochs=1))
    facts = facts_of(place)
    for path in place.iterdir():
        path.unlink()
    speak(place, "b", 30, weights(), facts)
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    return place


def facts_at(place: Path) -> dict[str, str]:
    return json.loads((place.parent / "facts.json").read_text())


def adoptions(folder: Path) -> list[tuple[int, str]]:
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "exchange"]
    return [(row["step"], said["blob"]) for row in rows for said in row["adopted"]]


def pulls(folder: Path) -> list[float]:
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    return [row["terms"]["partners"] for row in rows]


def test_a_partner_is_heard_and_counted(tmp_path: Path, place: Path) -> None:
    result = train(tmp_path / "a", recipe(place))
    counts = result["exchange"]
    assert counts["published"] == STEPS // 2 and counts["errors"] == 0 and counts["alone"] == 0
    assert counts["partners"]["b"] == {"fetched": 1, "adopted": 1, "refused": {}, "stale": 0, "step": 30, "age": -30}
    assert all(pull > 0 for pull in pulls(tmp_path / "a"))
    assert result["exchange"] == json.loads((tmp_path / "a" / "result.json").read_text())["exchange"]
    assert sum(parse_name(path.name).job == "a" for path in place.iterdir()) == 3


def test_the_pull_is_that_of_the_partners_network(tmp_path: Path, place: Path) -> None:
    """The first logged term, from the partner's weights and the first batch."""
    made = recipe(place, data__augment="none", data__flip=False)
    train(tmp_path / "a", made)
    built = Experiment(made, folder=tmp_path / "again", quiet=True).build()
    from tiny import loader_of

    batch = next(iter(loader_of(made).batches(0)))
    partner = NETS["cnn4_w4"](num_classes=4, in_channels=3, image_size=8)
    partner.load_state_dict(weights())
    built.cohort.train()
    with torch.no_grad():
        chances = partner.eval()(batch.views[0]).softmax(1)
        own = [peer.logits.log_softmax(1) for peer in built.cohort(batch.views)]
    expected = sum(-float(chances[b] @ scores[b]) for scores in own for b in range(8)) / 8
    assert pulls(tmp_path / "a")[0] == pytest.approx(expected, rel=1e-5)


def test_without_any_partner_training_is_ordinary(tmp_path: Path, prompt: None) -> None:
    result = train(tmp_path / "a", recipe(tmp_path / "x"))
    assert result["exchange"]["alone"] == STEPS and not result["exchange"]["partners"]
    assert not any(pulls(tmp_path / "a"))
    plain = train(tmp_path / "plain", tiny("independent", epochs=4, data__validation=0, train__log_every=1))
    one, other = (CheckpointStore(RunFolder(tmp_path / name).checkpoints).load_newest()[1] for name in ("a", "plain"))
    assert all(torch.equal(one.section("peer1")[key], other.section("peer1")[key]) for key in one.section("peer1"))
    assert plain["last"] == result["last"]


@pytest.mark.case(45)
def test_a_partner_that_lags_is_trusted_less_and_then_not_at_all(tmp_path: Path, place: Path) -> None:
    facts = facts_at(place)
    next(place.iterdir()).unlink()
    speak(place, "b", 2, weights(), facts)
    result = train(tmp_path / "a", recipe(place))
    counts = result["exchange"]["partners"]["b"]
    assert counts["stale"] == STEPS - 14 == result["exchange"]["alone"], "from 12 steps behind"
    found = pulls(tmp_path / "a")
    assert all(found[:13]) and not any(found[14:])
    assert found[12] < 0.5 * found[0], "trust falls from 4 steps behind"


@pytest.mark.case(45)
def test_a_partner_far_behind_is_not_even_fetched(tmp_path: Path, place: Path) -> None:
    next(place.iterdir()).unlink()
    train(tmp_path / "a", recipe(place, exchange__max_age=5), resume=False)
    speak(place, "b", 1, weights(), facts_at(place))
    stop_after(1, lambda: train(tmp_path / "c", recipe(place, "c", exchange__partners=("b",))))
    assert adoptions(tmp_path / "c") == [(0, next(path.name for path in place.iterdir() if path.name[0] == "b"))]


WRONG: dict[str, Callable[[Path, Mapping[str, str]], object]] = {
    "hash": lambda place, facts: flip(speak(place, "b", 40, weights(8), facts)),
    "torn": lambda place, facts: write(
        place, encode(weights(8), job="b", step=40, kind="weights", facts=facts)[:-9], "b", 40
    ),
    "shape": lambda place, facts: speak(place, "b", 40, weights(8, "cnn4_w16"), facts),
    "network": lambda place, facts: speak(place, "b", 40, weights(8), {**facts, "net": "resnet32"}),
    "classes": lambda place, facts: speak(place, "b", 40, weights(8), {**facts, "classes": "others"}),
    "numbers": lambda place, facts: speak(
        place, "b", 40, {key: tensor / 0 if tensor.dim() else tensor for key, tensor in weights(8).items()}, facts
    ),
    "huge": lambda place, facts: forged(
        encode(weights(8), job="b", step=40, kind="weights", facts=facts),
        lambda header: header["head.weight"].update(shape=[10**6, 10**6], data_offsets=[0, 4 * 10**12]),
        "b",
        40,
        place,
    ),
}


@pytest.mark.case(45, 86)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_blob_is_refused_in_one_line_and_training_goes_on(tmp_path: Path, place: Path, fault: str) -> None:
    good = next(place.iterdir()).name
    WRONG[fault](place, facts_at(place))
    with pytest.warns(ExchangeWarning, match=r"blob b-00000040-weights-\w+ of job b is refused: .*; training goes on"):
        result = train(tmp_path / "a", recipe(place))
    counts = result["exchange"]["partners"]["b"]
    assert counts["refused"] == {{"huge": "shape"}.get(fault, fault): 1} and counts["adopted"] == 1
    assert adoptions(tmp_path / "a") == [(0, good)]


def newest(place: Path, job: str) -> int:
    """The last step at which a job has said something; -1 for none."""
    names = [parse_name(path.name) for path in place.iterdir()] if place.exists() else []
    return max((name.step for name in names if name and name.job == job), default=-1)


def killed_after_speaking(place: Path, work: Callable[[], object], rest: float) -> bool:
    """Kill -9 a job some time after it has said something new; False when it ended before."""
    before, child = newest(place, "a"), fork(work)
    soon(lambda: newest(place, "a") > before or os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    time.sleep(rest)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.case(45)
def test_a_job_goes_on_while_its_partner_is_killed_ten_times() -> None:
    with memory_folder() as base:
        place, done, draw = base / "x", base / "done", random.Random(5)
        common = {"train__checkpoint_every": 1, "train__log_every": 0, "exchange__max_age": 1000, "exchange__keep": 2}
        made = {name: recipe(place, name, epochs=30, seed=ord(name), **common) for name in "ab"}

        train(base / "warm", recipe(base / "y", epochs=1))  # children need not import what a first step needs

        def dying() -> None:
            warnings.simplefilter("ignore")
            train(base / "a", made["a"], resume=RunFolder(base / "a").recipe.exists())

        def patient() -> None:
            step = exchanging.Exchange.before_step
            pace = {True: 0.0, False: 0.06}  # it outlives the other
            exchanging.Exchange.before_step = lambda self, run: (time.sleep(pace[done.exists()]), step(self, run))[1]
            train(base / "b", made["b"])

        other = fork(patient)
        assert all(killed_after_speaking(place, dying, draw.uniform(0, 0.03)) for _ in range(10))
        assert wait(fork(dying)) == 0
        done.touch()
        assert wait(other) == 0
        found = {name: json.loads((base / name / "result.json").read_text())["exchange"] for name in "ab"}
        left = [path.name for path in place.iterdir()]
    assert found["b"]["partners"]["a"]["adopted"] >= 5 and found["a"]["partners"]["b"]["adopted"] >= 1
    assert not found["a"]["partners"]["b"]["refused"] and not found["b"]["partners"]["a"]["refused"], "no torn reads"
    assert sorted(parse_name(name).job for name in left) == ["a", "a", "b", "b"], "no more than is kept, nothing torn"


@pytest.mark.case(46)
def test_a_place_that_goes_and_comes_back(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exchanging.Exchange.before_step

    def before_step(self: Any, run: Any) -> None:
        if run.batches == 5:
            place.rename(tmp_path / "away")
        elif run.batches == 13:
            (tmp_path / "away").rename(place)
            for retry in self.mail._retries.values():
                retry.due = 0.0  # what would be half a minute in a long outage
        before(self, run)

    monkeypatch.setattr(exchanging.Exchange, "before_step", before_step)
    with pytest.warns(
        ExchangeWarning, match=r"cannot (look|publish) in .*; training goes on, it is tried again"
    ) as told:
        result = train(tmp_path / "a", recipe(place))
    counts = result["exchange"]
    assert counts["errors"] >= 2 and counts["partners"]["b"]["stale"] == 0 and len(told) == 2
    assert any(path.name.startswith(f"a-{STEPS:08d}") for path in place.iterdir()), "the last weights are said"
    news = [item["what"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl") if row["kind"] == "exchange"
            for item in row["news"]]  # fmt: skip
    assert "error" in news and "back" in news


@pytest.mark.parametrize("what", ["weights", "predictions"])
def test_a_resumed_job_goes_on_with_its_partners_to_the_bit(tmp_path: Path, prompt: None, what: str) -> None:
    place = tmp_path / "x"
    train(tmp_path / "b", recipe(place, "b", exchange__what=what, exchange__keep=0))
    made = recipe(place, exchange__what=what, exchange__max_age=100, exchange__partners=("b",), exchange__images=30)
    if what == "predictions":
        made = recipe(place, exchange__what=what, exchange__max_age=100, exchange__partners=("b",))
    for path in sorted(place.iterdir())[:-1]:
        path.unlink()
    whole, pieces = (run_in_pieces(made, tmp_path / name, stops) for name, stops in (("w", ()), ("p", (3, 8, 12))))
    assert whole.result["digest"] == pieces.result["digest"] and whole.result["last"] == pieces.result["last"]
    assert len(adoptions(tmp_path / "p")) == 1 == len(adoptions(tmp_path / "w"))
    assert all(pulls(tmp_path / "p"))


@pytest.mark.slow
def test_a_run_is_replayed_to_the_bit(tmp_path: Path) -> None:
    """Two live jobs, of which nobody knows when they will hear each other; what one has heard is repeated."""
    place = tmp_path / "x"
    made = {name: recipe(place, name, seed=ord(name), epochs=12, exchange__keep=0) for name in "ab"}
    children = [fork(lambda name=name: train(tmp_path / name, made[name])) for name in "ab"]
    assert [wait(child) for child in children] == [0, 0]
    names = {name: RunFolder(tmp_path / name) for name in "ab"}
    heard = max(names, key=lambda name: len(adoptions(tmp_path / name)))
    assert adoptions(tmp_path / heard)
    again = recipe(place, heard, seed=ord(heard), epochs=12, exchange__keep=0, exchange__replay=tmp_path / heard)
    count = len(list(place.iterdir()))
    result = train(tmp_path / "again", again)
    assert result["digest"] == json.loads(names[heard].result.read_text())["digest"]
    assert pulls(tmp_path / "again") == pulls(tmp_path / heard)
    assert len(list(place.iterdir())) == count, "nothing is published"
    for path in place.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"is gone, and the run to be repeated .* exchange\.keep=0"):
        train(tmp_path / "gone", again)


def test_predictions_of_shared_images(tmp_path: Path, prompt: None) -> None:
    """Networks of two kinds; about images that are not shared nothing is said."""
    place = tmp_path / "x"
    options = {"exchange__what": "predictions", "exchange__images": 20, "exchange__max_age": 100}
    wide = recipe(place, "b", cohort__nets=("cnn4_w16",), **options)
    train(tmp_path / "b", wide)
    result = train(tmp_path / "a", recipe(place, **options))
    assert result["exchange"]["partners"]["b"]["adopted"] == 1 and not result["exchange"]["partners"]["b"]["refused"]
    other = recipe(place, "c", exchange__partners=("b",), **{**options, "exchange__images": 21})
    with pytest.warns(ExchangeWarning, match="was made with other data"):
        assert train(tmp_path / "c", other)["exchange"]["partners"]["b"]["refused"] == {"data": 3}


def test_shared_images_do_not_depend_on_seed_limit_or_split(tmp_path: Path) -> None:
    config = recipe(tmp_path, exchange__what="predictions", exchange__images=20)
    rows = []
    for settings in ({}, {"data__validation": 0.2}, {"data__limit": 40}):
        made = recipe(tmp_path, exchange__what="predictions", exchange__images=20, **settings)
        parts = Experiment(made, folder=tmp_path / "n", quiet=True).build()
        shared = exchanging._shared_rows(made.exchange, parts)
        rows.append(shared.tolist())
        own = exchanging._rows_of(parts, shared)
        whole = parts.data.whole
        for image, row in enumerate(own.tolist()):
            if row >= 0:
                same = whole.select(shared[row : row + 1]).fingerprint()
                assert same == parts.data.train.select(torch.tensor([image])).fingerprint()
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == config.exchange.images


def test_a_partner_of_another_network(tmp_path: Path, place: Path) -> None:
    facts = {**facts_at(place), "net": "cnn4_w16"}
    speak(place, "c", 30, weights(3, "cnn4_w16"), facts)
    result = train(tmp_path / "a", recipe(place, exchange__nets=("cnn4_w16", "cnn4_w4")))
    assert {job: counts["adopted"] for job, counts in result["exchange"]["partners"].items()} == {"b": 1, "c": 1}


def test_partners_stay_when_a_peer_joins(tmp_path: Path, place: Path) -> None:
    result = train(tmp_path / "a", recipe(place, cohort__joins=(2, 0)))
    counts = result["exchange"]
    assert counts["partners"]["b"]["adopted"] == 1 and counts["alone"] == 0
    assert len(pulls(tmp_path / "a")) == STEPS and all(pulls(tmp_path / "a"))


def test_starting_over_withdraws_what_was_said(tmp_path: Path, place: Path) -> None:
    train(tmp_path / "a", recipe(place, epochs=6))
    train(tmp_path / "a", recipe(place, epochs=1), fresh=True)
    steps = {parse_name(path.name).step for path in place.iterdir() if path.name[0] == "a"}
    assert max(steps) == BATCHES


REFUSED = {
    "learns from other jobs and there is no exchange": {"exchange__folder": ""},
    "small letters": {"exchange__job": "../a"},
    "exchange.job is ''": {"exchange__job": ""},
    "exchange.partners is 'B'": {"exchange__partners": ("B",)},
    "names job 'a' twice": {"exchange__partners": ("b", "a")},
    "unknown network 'cnn4_w5'; did you mean": {"exchange__nets": ("cnn4_w5",)},
    "give more than 100": {"exchange__every": 50, "exchange__max_age": 100},
    "partners come and go": {"train__compile": "graph"},
    "cannot be opened": {"exchange__folder": "nonsense://x"},
    "is not the folder of a run": {"exchange__replay": "nowhere"},
}


@pytest.mark.parametrize("words", REFUSED)
def test_an_exchange_that_cannot_work_is_refused_before_training(tmp_path: Path, words: str) -> None:
    made = recipe(tmp_path / "x", **REFUSED[words])
    with pytest.raises(ConfigError, match=words) as caught:
        train(tmp_path / "a", made)
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()


def test_the_first_process_must_have_the_leader_it_speaks_for(place: Path) -> None:
    needs = METHODS["codistillation_jobs"].needs
    with pytest.raises(ConfigError, match=r"peer_ranks=2 peer 1 lives in another one; set cohort\.leader=0"):
        check_exchange(recipe(place, train__peer_ranks=2), needs)
    check_exchange(recipe(place, train__peer_ranks=2, cohort__leader=0), needs)


def test_a_plan_names_the_others_and_tells_them_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    lines = dict(make_plan(recipe(place, exchange__partners=("b", "c")), budget=0.5).lines)
    assert lines["exchange"] == f"weights of the leader to {place} as job a, every 2 batches"
    assert lines["partners"] == "b, c, up to 12 batches behind"
    assert not [*place.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [1, 2])
def test_two_processes_hear_what_the_first_has_fetched(tmp_path: Path, place: Path, apart: int) -> None:
    """In float64 the run of two ranks is that of one, whose partner's weights came by way of rank 0."""
    made = recipe(place, exchange__partners=("b",), data__batch_size=8, exchange__max_age=100, cohort__leader=0)

    next(place.iterdir()).unlink()
    doubled = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in weights().items()}
    speak(place, "b", 30, doubled, facts_at(place))
    train_precisely(made, tmp_path / "one")
    for path in place.iterdir():
        if path.name[0] == "a":
            path.unlink()

    def work(rank: int) -> None:
        train_precisely(on_mesh(made, apart), tmp_path / "two")

    assert in_ranks(2, work) == [("ok", None)] * 2
    assert adoptions(tmp_path / "one") == adoptions(tmp_path / "two") != []
    assert pulls(tmp_path / "two") == pytest.approx(pulls(tmp_path / "one"), rel=1e-10)
    assert newest(place, "a") == STEPS


@pytest.mark.slow
def test_the_report_tells_what_was_heard(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(speak(place, "b", 40, weights(8), facts_at(place)))
    with pytest.warns(ExchangeWarning):
        train(tmp_path / "a", recipe(place))
    assert main(["report", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"exchange: {STEPS // 2} blobs published, 0 errors, 0 of {STEPS} steps without a partner" in lines
    assert "partner b: 1 adopted, last one 30 steps ahead, 1 refused: hash" in lines


def test_a_method_that_hears_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method=dml\+codistillation_jobs"):
        train(tmp_path / "a", tiny("dml", exchange__folder=tmp_path / "x", exchange__job="a"))


def test_another_exchange_on_resume_is_refused_another_folder_is_not(tmp_path: Path, place: Path) -> None:
    stop_after(3, lambda: train(tmp_path / "a", recipe(place)))
    with pytest.raises(CheckpointError, match=r"exchange\.every 2 -> 3"):
        train(tmp_path / "a", recipe(place, exchange__every=3), resume=True)
    moved = place.rename(tmp_path / "moved")
    train(tmp_path / "a", recipe(moved), resume=True)
    assert adoptions(tmp_path / "a")[0][0] == 0
