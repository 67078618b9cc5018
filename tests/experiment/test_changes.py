"""What a continued run may change: nothing it computes by, though an earlier version may have known fewer keys."""

from __future__ import annotations

import pytest

from coterie.config import find_recipe, load_recipe, to_toml
from coterie.experiment.changes import differences

NEW_KEYS = ("joins", "leaves", "input")


def in_full(*settings: str) -> str:
    return to_toml(load_recipe(find_recipe("cifar100/mcl_okd"), settings))


def of_an_earlier_version(text: str) -> str:
    """The text without keys and tables that came later."""
    kept = [line for line in text.splitlines() if not line.startswith(NEW_KEYS)]
    start = next(number for number, line in enumerate(kept) if line == "[teacher]")
    end = next((number for number in range(start + 1, len(kept)) if kept[number].startswith("[")), len(kept))
    return "\n".join(kept[:start] + kept[end:]) + "\n"


@pytest.mark.case(73)
def test_keys_that_came_later_count_as_their_defaults() -> None:
    text = in_full()
    old = of_an_earlier_version(text)
    assert len(old.splitlines()) <= len(text.splitlines()) - 4
    assert differences(old, text) == {}


def test_a_later_key_that_is_not_at_its_default_is_a_difference() -> None:
    old = of_an_earlier_version(in_full())
    assert differences(old, in_full("net.input=luminance")) == {"net.input": ("image", "luminance")}


def test_texts_of_unknown_methods_are_compared_as_written() -> None:
    old, new = '[method]\nname = "from a plugin"\nknob = 1\n', '[method]\nname = "from a plugin"\nknob = 2\n'
    assert differences(old, old) == {}
    assert differences(old, new) == {"method.knob": (1, 2)}
