from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import FIGURES, main, measure
from benchmarks.learners import make_learner
from benchmarks.sizes import Setting, Sizes
from benchmarks.table import Line, Row, Skipped, text_of, write_json

from benchmarks import contrast, gpu, memory, methods, steps, transport, waits
from coterie.core import METHODS, ConfigError

TINY = Sizes(
    many_peers=5,
    batch=8,
    large_batch=16,
    num_train=200,
    large_train=400,
    negatives=16,
    classes=4,
    dim=16,
    image=8,
    net="resnet8",
    student="resnet8",
    teacher="resnet14",
    loaded_batch=8,
    loaded_images=32,
    draws=8,
    iterations=10,
)
SETTING = Setting(sizes=TINY, rounds=1)
SMALL = replace(SETTING, methods=("independent", "dml", "mcl", "mcl_okd", "l_mcl", "pcl", "kd", "crd"))


def rows_of(lines: Iterable[Line]) -> dict[str, Row]:
    found = list(lines)
    assert all(isinstance(line, Row) for line in found)
    return {line.key: line for line in found if isinstance(line, Row)}


SLOW = "checkpoints", "full", "large", "many", "scaling"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in FIGURES
        if name not in ("memory", "methods", "waits")
    ],
)
def test_every_figure_is_measured_at_any_size(name: str) -> None:
    rows = rows_of(measure(SETTING, [name]))
    assert rows and all(math.isfinite(row.measured.value) for row in rows.values())
    assert all(row.measured.low <= row.measured.high for row in rows.values())
    assert all(row.limit is not None for key, row in rows.items() if not key.startswith("scaling.machine"))


@pytest.mark.slow
def test_each_method_has_a_row_and_a_limit_of_its_kind() -> None:
    rows = rows_of(methods.every(SMALL))
    assert list(rows) == [f"method.{name}" for name in sorted(SMALL.methods)]
    limits = {row.key.removeprefix("method."): row.limit for row in rows.values()}
    assert limits["dml"] == 1.10 and limits["mcl"] == 1.25 and limits["mcl_okd"] == 1.20
    assert limits["l_mcl"] is None and limits["kd"] is None
    assert "and its teacher" in rows["method.kd"].title and "forward passes" in rows["method.pcl"].title


def test_every_registered_method_takes_part() -> None:
    asked = methods.measurable(SETTING)
    assert set(asked) == {name for name in METHODS if METHODS[name].needs.episode is None}


def test_the_exact_mode_is_exact() -> None:
    rows = rows_of(contrast.exact(SETTING))
    assert rows["exact.float64"].measured.value < 1e-12 and rows["exact.float32"].measured.value < 1e-5


@pytest.mark.slow
def test_noise_and_bias_tell_a_wrong_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    fair = rows_of(contrast.noise(replace(SETTING, sizes=replace(TINY, draws=64))))
    found = contrast.parameter_gradients(replace(SETTING, sizes=replace(TINY, draws=64)))
    found["shared"] = 1.5 * found["shared"]
    monkeypatch.setattr(contrast, "parameter_gradients", lambda setting: found)
    unfair = rows_of(contrast.noise(SETTING))
    assert unfair["noise.ratio"].measured.value == pytest.approx(1.5 * fair["noise.ratio"].measured.value)
    assert unfair["noise.bias"].measured.value > 10 > fair["noise.bias"].measured.value


def test_the_envelope_is_the_gradient_of_the_entropic_value() -> None:
    setting = replace(SETTING, sizes=replace(TINY, batch=16, dim=256))
    assert transport.gradient_gap(setting) < 1e-4


def test_a_full_step_trains_networks_heads_and_banks() -> None:
    learner = make_learner(SETTING)
    before = {name: value.clone() for name, value in learner.run.objective.state_dict().items()}
    bank = learner.method.memories["bank"].state()["rows"].clone()
    learner.step()
    after = learner.run.objective.state_dict()
    still = [name for name, value in learner.run.objective.named_parameters() if torch.equal(before[name], value)]
    assert not still and after.keys() == before.keys()
    assert not torch.equal(bank, learner.method.memories["bank"].state()["rows"])


def test_an_outer_step_follows_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(SETTING, "codistillation")
    called: list[object] = []
    monkeypatch.setattr(learner.method, "outer_step", called.append)
    learner.step()
    assert not called
    learner.outer()
    assert len(called) == 1
    assert learner.cost([1.0, 2.0], 51.0) == [pytest.approx(2.0), pytest.approx(2.98)]


def test_banks_are_kept_in_the_number_format_that_is_asked_for() -> None:
    learner = make_learner(SETTING, bank=torch.bfloat16)
    learner.step()
    assert learner.method.memories["bank"].state()["rows"].dtype == torch.bfloat16


def test_no_step_waits_and_one_that_does_is_counted() -> None:
    rows = rows_of(waits.waiting(SMALL))
    assert {row.measured.value for row in rows.values()} == {0.0}
    values = torch.arange(4)
    device = torch.device("cpu")
    assert waits.waits_of(lambda: values[values > 1], device) == ["index"]
    assert waits.waits_of(lambda: (values.sum().item(), values.tolist()), device)[-1] == "tolist"
    assert waits.waits_of(lambda: torch.nonzero(values), device) == ["nonzero"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    rows = rows_of(memory.peak(replace(SETTING, sizes=replace(TINY, num_train=5_000, negatives=2_048))))
    small, large = rows["memory.batch"].measured.value, rows["memory.large_batch"].measured.value
    assert 0 < small < 60 and 0 < large < 60
    block = 64 * 2**20  # bytes, which must not go unnoticed
    assert memory.added_by(lambda: torch.ones(block, dtype=torch.uint8)) >= 60


def test_a_way_of_running_a_cohort_that_is_not_known_is_skipped_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MODES", {"eager": (), "never": ("train.nothing=never",)})
    sizes = replace(TINY, peers=2, batch=16)
    monkeypatch.setattr(gpu, "_STEPS", 6)
    lines = list(gpu.modes(SETTING, [gpu.Place(name="tiny", sizes=sizes, step_limit=1e9)]))
    rows = rows_of(lines[:-1])
    assert list(rows) == [f"modes.tiny.eager.{part}" for part in ("rate", "step", "ratio")]
    assert rows["modes.tiny.eager.step"].reached
    assert isinstance(lines[-1], Skipped) and "train.nothing" in text_of(lines[-1])


def test_throughput_tells_shares_of_the_limits() -> None:
    limits = gpu.device_limits(torch.device("cpu"), side=64, copied=1 << 16, rounds=1)
    assert limits.flops > 0 and limits.bytes > 0
    place = gpu.Place(name="tiny", sizes=TINY, step_limit=1e9, ratio_limit=1e-9)
    rows = rows_of(gpu.throughput(SETTING, [place], side=64, copied=1 << 16))
    for layout in ("nchw", "channels_last"):
        own = {part: rows[f"gpu.tiny.{layout}.{part}"] for part in ("step", "ratio", "rate", "matmul", "copy")}
        rate = own["rate"].measured.value
        assert rate == pytest.approx(1e3 * TINY.batch / own["step"].measured.value)
        assert own["step"].reached and own["ratio"].reached is False and own["matmul"].measured.value > 0


def test_the_table_is_written_as_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = rows_of(contrast.exact(SETTING))["exact.float64"]
    write_json(tmp_path / "table.json", [row, Skipped("gpu", "no device")], SETTING, seconds=1.0)
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["rows"][0]["reached"] is True and report["rows"][0]["limit"] == 1e-10
    assert report["skipped"] == [{"key": "gpu", "reason": "no device"}] and report["sizes"]["net"] == "resnet8"
    assert row.cells()[-1] == "yes" and replace(row, limit=0.0).cells()[-1] == "NO"
    assert replace(row, at_least=True).reached is False and replace(row, limit=None).reached is None


def test_a_method_is_compared_with_kd_or_with_plain_steps() -> None:
    taught = rows_of(steps.compare(SETTING, "crd", ["negatives=per_sample"]))
    assert "a step of kd" in taught["method"].title and taught["other.ms"].measured.value > 0
    online = rows_of(steps.compare(SETTING, "dml", []))
    assert "plain steps" in online["method"].title


def test_a_trace_is_written(tmp_path: Path) -> None:
    steps.profile(SETTING, tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    "words", ["--method crd z=never", "--method nothing", "z=batch", "--only nothing", "--device cuda", "--rounds x"]
)
def test_what_cannot_be_measured_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words == "--device cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    lines = capsys.readouterr().err.splitlines()
    assert "benchmarks: error: " in lines[-1] and (len(lines) == 1 or "--only" in words or "--rounds" in words)


def test_an_unknown_knob_is_an_error_of_the_library() -> None:
    with pytest.raises(ConfigError):
        make_learner(SETTING, "dml", ["nothing=1"])
