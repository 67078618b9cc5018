"""What the picture of an episode says of right and wrong answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from coterie.core import CheckpointError
from coterie.reports import EpisodePicture, episode_page
from coterie.reports.episode_page import RIGHT, WRONG


def episode(answers: Tensor, *, shots: int = 1, channels: int = 1) -> EpisodePicture:
    ways, queries = answers.shape
    return EpisodePicture(
        title="first test episode of $\\frac{1}$",
        network="leader of run",
        support=torch.zeros(ways, shots, channels, 8, 8),
        queries=torch.zeros(ways, queries, channels, 8, 8),
        answers=answers,
    )


def count(path: Path, colour: str) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - 255 * np.array(to_rgb(colour))) < 2).all(axis=-1).sum())


def test_frames_and_signs_tell_right_from_wrong(tmp_path: Path) -> None:
    right = torch.arange(3)[:, None].expand(3, 2)
    for name, answers in (
        ("right", right),
        ("wrong", (right + 1) % 3),
        ("mixed", right.clone().index_fill_(1, torch.tensor([0]), 2)),
    ):
        episode_page(episode(answers), tmp_path / f"{name}.png")
    frames = {
        name: [count(tmp_path / f"{name}.png", colour) for colour in (RIGHT, WRONG)]
        for name in ("right", "wrong", "mixed")
    }
    assert frames["right"][1] == frames["wrong"][0] == 0
    assert frames["right"][0] > frames["mixed"][0] > 0 and frames["wrong"][1] > frames["mixed"][1] > 0


def test_the_caption_counts_all_queries_and_says_what_is_drawn() -> None:
    answers = torch.arange(4)[:, None].expand(4, 15).clone()
    answers[1, 9:] = 0
    caption = episode(answers, shots=7).caption
    assert "4 ways, 7 shots: 54 of 60 queries right" in caption
    assert "drawn of each class: 5 of 7 in the support, 6 of 15 queries" in caption
    assert "4 ways, 1 shot:" in episode(answers).caption


@pytest.mark.slow
@pytest.mark.parametrize(("ways", "channels"), [(2, 3), (11, 1), (20, 2)])
def test_any_episode_is_a_picture_of_sober_size(ways: int, channels: int, tmp_path: Path) -> None:
    answers = torch.zeros(ways, 7, dtype=torch.int64)
    episode_page(episode(answers, shots=2, channels=channels), tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        width, height = picture.size
    assert 500 < width < 2200 and 250 < height < 1600


def test_an_episode_is_always_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        episode_page(episode(torch.zeros(2, 1, dtype=torch.int64)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        episode_page(episode(torch.zeros(2, 1, dtype=torch.int64)), tmp_path / "file" / "x.png")
