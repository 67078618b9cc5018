from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from coterie.engine import Display

ROW = {"kind": "train", "loss": 2.5, "terms": {"task": 2.0, "mutual": 0.5}, "accuracy": [50.0, 62.5]}
VALIDATION = {"kind": "validation", "leader": {"top1": 61.25}, "ensemble": {"top1": 66.0}}


def fake_run(epoch: int, position: int) -> Any:
    clock = SimpleNamespace(epoch=epoch, position=position)
    return SimpleNamespace(clock=clock, batches=5 * epoch + position, loader=SimpleNamespace(batches_per_epoch=5))


def show(*, terminal: bool, quiet: bool = False, start: int = 0) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, color_system=None)
    with Display(2, console, quiet=quiet) as display:
        for epoch in range(start, 2):
            for position in range(1, 6):
                display.on_step(fake_run(epoch, position), (), (), ())  # type: ignore[arg-type]
            display.on_row(ROW)
            display.on_timing({"images_per_second": 640.0})
            display.on_row(VALIDATION)
            display.on_epoch(fake_run(epoch, 5))
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    first, second = show(terminal=False).splitlines()
    figures = (
        "loss 2.500 (task 2.000 mutual 0.500)  peers 50.0 62.5 %  640 images/s"
        "  validation: leader 61.25 % ensemble 66.00 %"
    )
    assert first.startswith(f"epoch 1/2  {figures}  ")
    assert re.search(r"  \d+ s left$", first)
    assert second.startswith(f"epoch 2/2  {figures}")
    assert second.endswith("0 s left")


def test_one_live_line_on_a_terminal() -> None:
    text = show(terminal=True)
    assert "epoch 2/2" in text
    assert "10/10" in text
    assert "\x1b[2K" in text or "\r" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_prints_nothing(terminal: bool) -> None:
    assert show(terminal=terminal, quiet=True) == ""


def test_a_resumed_run_tells_the_time_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 10.0, 10.0])
    monkeypatch.setattr("coterie.engine.display.time.perf_counter", lambda: next(clock))
    out = io.StringIO()
    display = Display(2, Console(file=out, width=200))
    display.on_row(ROW)
    display.on_step(fake_run(0, 3), (), (), ())  # type: ignore[arg-type]
    display.on_step(fake_run(0, 4), (), (), ())  # type: ignore[arg-type]
    display.on_step(fake_run(0, 5), (), (), ())  # type: ignore[arg-type]
    display.on_epoch(fake_run(0, 5))
    assert out.getvalue().rstrip().endswith(f"{10 / 3 * 5:.0f} s left")  # 3 batches took 10 s, 5 are left
