"""Frozen peers, given weights, trees, diagnostics and the report, on whole tiny runs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.cli import main
from coterie.core import ConfigError
from coterie.core.record import read_metrics
from coterie.engine import CheckpointStore
from coterie.experiment import Experiment
from tiny import run_in_pieces, tiny

NETS = ("cnn4_w4", "cnn4_w4")


def weights(folder: Path, peer: int) -> dict[str, torch.Tensor]:
    found = CheckpointStore(folder / "checkpoints").load_newest()
    assert found is not None
    return dict(found[1].section(f"peer{peer}"))


def test_a_frozen_peer_with_given_weights_teaches_and_stays_as_it_was(tmp_path: Path) -> None:
    run_in_pieces(tiny("dml"), tmp_path / "first")
    teacher = weights(tmp_path / "first", 1)
    save_file(teacher, tmp_path / "teacher.safetensors")
    for name, source in {"file": tmp_path / "teacher.safetensors", "run": tmp_path / "first"}.items():
        recipe = tiny("dml", cohort__nets=NETS, cohort__weights=(str(source),), cohort__frozen=(0,))
        run_in_pieces(recipe, tmp_path / name)
        kept = weights(tmp_path / name, 0)
        assert all(
            torch.equal(kept[key], tensor) for key, tensor in load_file(tmp_path / "teacher.safetensors").items()
        )
        assert not all(torch.equal(weights(tmp_path / name, 1)[key], tensor) for key, tensor in teacher.items())


def test_a_peer_of_a_run_is_named_by_its_number(tmp_path: Path) -> None:
    run_in_pieces(tiny("dml"), tmp_path / "first")
    recipe = tiny("dml", cohort__nets=NETS, cohort__weights=(f"{tmp_path / 'first'}#0", f"{tmp_path / 'first'}#1"))
    cohort = Experiment(recipe, folder=tmp_path / "second", quiet=True).build().cohort
    for peer in range(2):
        given = weights(tmp_path / "first", peer)
        assert all(torch.equal(tensor, given[key]) for key, tensor in cohort[peer].state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cohort__weights": ("nowhere",)}, "no weights at 'nowhere'"),
        ({"cohort__weights": ("a", "b", "c")}, "3 sources for 2 peers"),
        ({"cohort__frozen": (1,)}, "peer 1 cannot be frozen"),
        ({"cohort__tree": (2, 1)}, r"in \[2, 1\] copies"),
        ({"cohort__tree": (1, 2), "cohort__shared": 1}, "give one of them"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment(tiny("dml", cohort__nets=NETS, **settings), folder=tmp_path / "run", quiet=True).build()


def test_a_run_is_diagnosed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_pieces(tiny("mcl_okd"), tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "diagnostics"]
    assert len(rows) == 1 and set(rows[0]["gradient_share"]) == {"task", "leader_kl", "contrast"}  # type: ignore[arg-type]
    assert sum(rows[0]["gradient_share"].values()) == pytest.approx(1)  # type: ignore[union-attr]
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "1 epochs drawn" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none")]) == 2


def test_a_probe_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_probe = run_in_pieces(tiny("mcl_okd"), tmp_path / "with")
    monkeypatch.setattr("coterie.engine.diagnostics.Diagnostics.on_epoch", lambda self, run: None)
    run_in_pieces(tiny("mcl_okd"), tmp_path / "without")
    for peer in range(2):
        other = weights(tmp_path / "without", peer)
        assert all(torch.equal(tensor, other[key]) for key, tensor in weights(tmp_path / "with", peer).items())
    assert with_probe.result["last"]["test"]
