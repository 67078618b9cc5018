"""What a map of embeddings shows: every class in each panel, in one colour, and an example of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coterie.reports import Panel, embedding_map


def draw(path: Path, classes: int, names: tuple[str, ...] = ("before", "leader of run")) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(classes).repeat_interleave(4)
    panels = [
        Panel(title=name, note="60.0 %", points=torch.randn(4 * classes, 2, generator=generator)) for name in names
    ]
    embedding_map(panels, labels, torch.rand(classes, 3, 8, 8, generator=generator), path, title="images of classes")
    return np.asarray(Image.open(path).convert("RGB"))


def colours(image: np.ndarray) -> int:
    return len(np.unique(image.reshape(-1, 3), axis=0))


def test_a_map_is_the_same_every_time(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 7)
    draw(tmp_path / "b.png", 7)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.slow
def test_more_panels_are_wider_and_more_classes_have_more_colours(tmp_path: Path) -> None:
    two, three = draw(tmp_path / "a.png", 3), draw(tmp_path / "b.png", 3, ("$x", "_y", "名前"))
    assert three.shape[1] > 1.4 * two.shape[1] and three.shape[0] == two.shape[0]
    upper = slice(100, 700)  # without the examples
    assert colours(draw(tmp_path / "c.png", 20)[upper]) > colours(two[upper])
