from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.core import CheckpointError, DataError
from coterie.reports import Series, learning_curves
from coterie.reports.plots import _summary

PNG = b"\x89PNG\r\n\x1a\n"


def series(name: str, *, seeds: int = 3, epochs: int = 5, accuracy: bool = True) -> Series:
    curves = [{epoch: 50.0 + 5 * epoch + seed for epoch in range(epochs)} for seed in range(seeds)]
    losses = [{epoch: 2.0 / (1 + epoch + seed) for epoch in range(epochs)} for seed in range(seeds)]
    return Series(name=name, accuracy=curves if accuracy else [{} for _ in curves], loss=losses)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def has_colour(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((image == np.array(colour)).all(axis=-1).sum() > 50)


def test_every_recipe_is_drawn_in_its_colour(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curves.png"
    learning_curves([series("alone"), series("dml")], path)
    assert path.read_bytes()[:8] == PNG
    image = pixels(path)
    assert has_colour(image, (0x00, 0x72, 0xB2)) and has_colour(image, (0xD5, 0x5E, 0x00))
    assert not has_colour(image, (0x00, 0x9E, 0x73))


def test_without_validation_the_loss_is_drawn_alone(tmp_path: Path) -> None:
    learning_curves([series("alone")], tmp_path / "both.png")
    learning_curves([series("alone", accuracy=False)], tmp_path / "loss.png")
    assert pixels(tmp_path / "loss.png").shape[1] < pixels(tmp_path / "both.png").shape[1]


def test_the_band_grows_with_the_spread(tmp_path: Path) -> None:
    def wide(width: float) -> int:
        curves = [{epoch: 50 + seed * width for epoch in range(30)} for seed in (-1, 0, 1)]
        anchor = [{0: 0.0, 29: 100.0}]
        made = [Series(name="a", accuracy=curves, loss=[]), Series(name="b", accuracy=anchor, loss=[])]
        learning_curves(made, tmp_path / "band.png")
        return int((pixels(tmp_path / "band.png").astype(int) @ [-1, 0, 1] > 20).sum())

    assert wide(20.0) > 2 * wide(1.0)


def test_summary_uses_the_epochs_that_all_seeds_have() -> None:
    epochs, mean, spread = _summary([{0: 1.0, 1: 2.0, 3: 9.0}, {1: 4.0, 0: 3.0}])
    assert (epochs, mean) == ([1, 2], [2.0, 3.0]) and spread == pytest.approx([2**0.5, 2**0.5])
    assert _summary([{0: 1.0}])[2] == [0.0] and _summary([]) == ([], [], [])


@pytest.mark.slow
@pytest.mark.case(83)
@pytest.mark.parametrize(
    "name",
    ["$\\frac{1}$", "half $ \\frac{", "\\$\\alpha$", "_hidden", "", "名前", "x" * 10_000, "\x1b[31m\n", "<script>"],
)
def test_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    learning_curves([series(name), series("other", epochs=1, seeds=1)], tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape[1] < 3000


def test_many_recipes_have_a_legend_that_fits(tmp_path: Path) -> None:
    learning_curves([series(f"recipe number {k}") for k in range(12)], tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape[1] < 3000


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    for nothing in ([], [Series(name="a", accuracy=[{}], loss=[{}])]):
        with pytest.raises(DataError, match="no learning curves"):
            learning_curves(nothing, tmp_path / "curves.png")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        learning_curves([series("alone")], tmp_path / "file" / "curves.png")


@pytest.mark.slow
def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from coterie.reports import Series, learning_curves;"
        "assert 'matplotlib' not in sys.modules;"
        f"learning_curves([Series(name='a', accuracy=[{{0: 1.0}}], loss=[])], Path({str(tmp_path / 'x.png')!r}));"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
