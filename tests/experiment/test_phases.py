"""Peers that come and go: when, what those that stay keep, and resume to the bit across the changes."""

from pathlib import Path

import pytest
import torch

from coterie.core import ConfigError
from coterie.core.files import read_json
from coterie.core.record import read_metrics
from coterie.engine import CheckpointStore
from coterie.experiment import Experiment, evaluate_run, export_run
from coterie.experiment.phases import Phase, phase_at, phases_of
from coterie.reports.cohort_page import cohort_page, read_rows
from tiny import BATCHES, run_in_pieces, tiny

THREE = {"cohort__nets": ("cnn4_w4",) * 3, "cohort__leader": 1, "epochs": 3}
KEEP_ALL = {"train__keep": 99, "train__checkpoint_every": 1}
COMING = {**THREE, "cohort__joins": (0, 0, 1), "cohort__leaves": (2,)}


def test_phases() -> None:
    recipe = tiny(
        epochs=9, cohort__nets=("cnn4_w4",) * 4, cohort__joins=(0, 3, 3), cohort__leaves=(0, 6, 9), cohort__leader=0
    )
    first, second, third = phases_of(recipe)
    assert (first, second, third) == (Phase(0, 3, (0, 3)), Phase(3, 6, (0, 1, 2, 3)), Phase(6, 9, (0, 2, 3)))
    assert [phase_at(recipe, epoch) for epoch in (0, 2, 3, 8, 9)] == [first, first, second, third, third]
    assert phases_of(tiny()) == (Phase(0, 2, (0, 1)),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cohort__joins": (0, 1)}, "the leader, peer 1, is there from first to last"),
        ({"cohort__leaves": (0, 1)}, "the leader, peer 1, is there from first to last"),
        ({"cohort__joins": (1,), "cohort__leaves": (1,)}, "peer 0 joins before epoch 1 and leaves before epoch 1"),
        ({"cohort__leaves": (5,)}, "leaves before epoch 5 of 2"),
        ({"cohort__joins": (0, 0, 1)}, r"cohort.joins=\[0, 0, 1\] for 2 peers"),
        ({"cohort__joins": (-1,)}, "0 or later"),
    ],
)
def test_changes_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        phases_of(tiny(**settings))


@pytest.mark.parametrize(
    ("method", "shared", "optim"),
    [
        pytest.param("dml", 1, "sgd", marks=pytest.mark.slow),
        ("mcl_okd", 0, "sgd"),
        pytest.param("mcl_okd", 1, "adamw", marks=pytest.mark.slow),
        pytest.param("codistillation", 0, "sgd", marks=pytest.mark.slow),
        pytest.param("pcl", 1, "adamw", marks=pytest.mark.slow),
    ],
)
def test_resume_across_changes(tmp_path: Path, method: str, shared: int, optim: str) -> None:
    recipe = tiny(method, **COMING, cohort__shared=shared, optim__name=optim, train__checkpoint_every=2)
    whole = run_in_pieces(recipe, tmp_path / "whole")
    stops = (3, BATCHES, 2 * BATCHES + 2)
    assert run_in_pieces(recipe, tmp_path / "pieces", stops) == whole


def test_what_stays_and_what_is_new(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd", **COMING, optim__lr=1e-30, optim__weight_decay=0.0, **KEEP_ALL)
    Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=99)
    old, new = store.load(BATCHES), store.load(BATCHES + 1)
    for section in ("peer0", "peer1"):
        for name, tensor in old.section(section).items():
            if "running" not in name and "num_batches" not in name:
                torch.testing.assert_close(new.section(section)[name], tensor, rtol=0, atol=1e-20)
    heads = old.section("method")
    assert heads and all(torch.allclose(heads[name], new.section("method")[name], atol=1e-20) for name in heads)
    assert any(name.startswith("heads.2.") for name in new.section("method"))
    rows, rows_now = (snapshot.section("memory")["bank/rows"] for snapshot in (old, new))
    unseen = ~(rows_now[0] != rows[0]).any(dim=1)
    assert 0 < int(unseen.sum()) < len(unseen)  # a batch has moved its own rows, the others are those of before
    assert torch.equal(rows_now[1, unseen], rows[1, unseen])


def test_momentum_follows_its_peer_and_its_head(tmp_path: Path) -> None:
    recipe = tiny("mcl_okd", **COMING, cohort__shared=1, **KEEP_ALL, optim__momentum=0.999)
    Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=99)
    before, after = store.load(2 * BATCHES), store.load(2 * BATCHES + 1)
    for then, now in (("peer1", "peer0"), ("peer2", "peer1")):  # peer 0 has left; the stem was under its name
        for name, tensor in after.section(f"{now}.optim").items():
            source = before.tensors[f"{then}.optim"].get(name, before.tensors["peer0.optim"].get(name))
            assert source is not None
            cosine = torch.cosine_similarity(tensor.flatten(), source.flatten(), dim=0)
            assert tensor.numel() < 3 or cosine > 0.5, (now, name, cosine)
    moved = after.section("method.optim")["heads.0.linear.weight/momentum_buffer"]
    same, other = (before.section("method.optim")[f"heads.{m}.linear.weight/momentum_buffer"] for m in (1, 0))
    assert (moved - same).norm() < 0.5 * (moved - other).norm()


COHORTS = [(0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])]


@pytest.mark.slow
def test_log_and_results_know_who_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Experiment(tiny("dml", **COMING), folder=folder, quiet=True).train()
    rows = read_metrics(folder / "metrics.jsonl")
    assert [(row["epoch"], row["peers"]) for row in rows if row["kind"] == "cohort"] == COHORTS
    assert [len(row["accuracy"]) for row in rows if row["kind"] == "train"] == [2, 3, 2]
    result = read_json(folder / "result.json")
    assert isinstance(result, dict) and (result["peers"], result["leader"]) == (2, 0)
    scores = evaluate_run(folder)
    assert scores["last_epoch"] == result["last"]["test"]
    assert scores["best_on_validation"] == result["best_on_validation"]["test"]
    export_run(folder)


def test_a_later_cohort_that_is_too_small_is_refused_at_once(tmp_path: Path) -> None:
    recipe = tiny("okddip", **{**THREE, "cohort__leaves": (2,)})
    with pytest.raises(ConfigError, match="needs at least 3 peers and got 2"):
        Experiment(recipe, folder=tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()


def test_the_report_tells_peers_by_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Experiment(tiny("dml", **COMING), folder=folder, quiet=True).train()
    rows = read_rows(folder)
    seen = {
        peer: [row["epoch"] for row, _ in points] for peer, points in rows.by_peer(rows.validation, "peers").items()
    }
    assert seen == {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    cohort_page(rows, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
