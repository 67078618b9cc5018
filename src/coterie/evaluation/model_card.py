"""The README that goes with an exported leader: what it is, how it was trained, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

from coterie.core.names import in_markdown, printable
from coterie.data.base import Normalisation

_PAGE = Template("""\
# $network, $count classes

Trained in a cohort of networks by online knowledge distillation and exported with Coterie. The file holds the leader
alone: a plain $network with $parameters parameters and $multiply_adds multiply-adds per image.

| | |
| --- | --- |
$facts

## Files

$files

## Use

With torch alone:

```python
$script```

## Classes

$classes
""")

_SCRIPT = Template("""\
import torch

net = torch.export.load("leader.pt2").module()
mean = torch.tensor($mean).view(1, -1, 1, 1)
std = torch.tensor($std).view(1, -1, 1, 1)
images = torch.rand($shape)  # your images, in [0, 1]
with torch.no_grad():
    logits = net((images - mean) / std)
for confidence, label in zip(*logits.softmax(dim=1).max(dim=1)):
    print(f"class {int(label)}, confidence {float(confidence):.3f}")
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What only the run knows about its leader.

    Attributes:
        network: name of the architecture.
        classes: class names by label.
        normalisation: what images are normalised with before they enter the network.
        facts: rows of the card by title: accuracy, method, data, epochs, seed, licence of the data and the like.
    """

    network: str
    classes: Sequence[str]
    normalisation: Normalisation
    facts: Mapping[str, str] = field(default_factory=dict)


def loading_script(card: ModelCard, image_shape: Sequence[int]) -> str:
    """Write the script that loads `leader.pt2` with torch alone and classifies images `[C, H, W]`."""
    return _SCRIPT.substitute(
        mean=list(map(float, card.normalisation.mean)),
        std=list(map(float, card.normalisation.std)),
        shape=", ".join(map(str, (1, *image_shape))),
    )


def render_card(
    card: ModelCard, *, image_shape: Sequence[int], parameters: int, multiply_adds: int, files: Sequence[Sequence[str]]
) -> str:
    """Write the model card.

    Args:
        card: what the run knows.
        image_shape: `[C, H, W]` of an image.
        parameters: of the network.
        multiply_adds: of one image.
        files: rows of the table of files, the header first.

    Returns:
        Markdown.
    """
    facts = {
        **card.facts,
        "input": " x ".join(map(str, image_shape)) + ", values in [0, 1], then normalised",
        "mean": _numbers(card.normalisation.mean),
        "standard deviation": _numbers(card.normalisation.std),
    }
    return _PAGE.substitute(
        network=_cell(card.network),
        count=len(card.classes),
        parameters=f"{parameters:,}",
        multiply_adds=f"{multiply_adds:,}",
        facts="\n".join(map(_row, facts.items())),
        files="\n".join([_row(files[0]), _row(["---"] * len(files[0])), *map(_row, files[1:])]),
        script=loading_script(card, image_shape),
        classes=", ".join(f"{label}: {in_markdown(name)}" for label, name in enumerate(card.classes)),
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return printable(" ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")
