"""Recipes: strict, typed, complete, written back in full."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coterie.methods  # noqa: F401
from coterie.config import find_recipe, load_recipe, recipe_names, resolve, to_toml
from coterie.core import METHODS, ConfigError

TREE = {"method": {"name": "dml"}, "optim": {"lr": 0.1}}


def test_values_take_the_types_of_their_fields() -> None:
    words = ["epochs=3", "cohort.nets=a, b", "optim.weight_decay=1e-4", "data.root=/x y", "data.flip=false"]
    recipe = resolve(TREE, words)
    assert (recipe.epochs, recipe.cohort.nets, recipe.optim.weight_decay) == (3, ("a", "b"), 1e-4)
    assert recipe.data.root == "/x y" and recipe.data.flip is False and recipe.optim.lr == 0.1


def test_the_command_line_wins_over_the_file_and_later_over_earlier() -> None:
    assert resolve(TREE, ["optim.lr=0.2", "optim.lr=0.3"]).optim.lr == 0.3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "command line: unknown option 'optim.lrr'; did you mean 'optim.lr'?"),
        ("method.temprature=1", "command line: unknown option 'method.temprature'; did you mean 'method.temperature'?"),
        ("optim.name=sgdd", "command line: optim.name is 'sgdd'; did you mean 'sgd'?"),
        ("data.batch_size=1e-3", "command line: data.batch_size is 0.001; give a whole number"),
        ("epochs=0", "command line: epochs is 0; give at least 1"),
        ("optim.lr=nan", "command line: optim.lr is nan; give a finite number"),
        ("optim.lr=-1", "command line: optim.lr is -1.0; give a number above 0"),
        ("data.flip=yes", "command line: data.flip is 'yes'; give true or false"),
        ("seed=true", "command line: seed is True; give a whole number"),
        ("train.keep=1", "command line: train.keep is 1; give at least 2"),
        ("method=dmll", "unknown method 'dmll'; did you mean 'dml'?"),
        ("epochs", "'epochs' is not a setting; write key=value"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TREE, [override])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.case(70)
def test_all_errors_are_reported_at_once_with_their_origin() -> None:
    tree = {"optim": {"lr": "fast", "momentun": 0.9}, "epochs": 2.5, "method": "independent"}
    with pytest.raises(ConfigError) as caught:
        resolve(tree, ["train.device=3", "cohort.peers=0"], origin="mine.toml")
    lines = str(caught.value).splitlines()
    assert "mine.toml: optim.lr is 'fast'; give a finite number" in lines
    assert "mine.toml: unknown option 'optim.momentun'; did you mean 'optim.momentum'?" in lines
    assert "mine.toml: epochs is 2.5; give a whole number" in lines
    assert "command line: cohort.peers is 0; give at least 1" in lines
    assert len(lines) == 4


def test_another_method_on_the_command_line_drops_the_knobs_of_the_first() -> None:
    tree = {"method": {"name": "mcl_okd", "beta": 0.5}}
    assert resolve(tree, ["method=independent"]).method == "independent"
    assert resolve(tree, ["method.name=mcl_okd"]).method_config.beta == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_loads_and_loads_back_from_what_is_written(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    assert resolve(tomllib.loads(to_toml(recipe))) == recipe


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_defaults_that_survive_writing(name: str) -> None:
    recipe = resolve({"method": name})
    assert resolve(tomllib.loads(to_toml(recipe))) == recipe


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = load_recipe(find_recipe("cifar100/mcl_okd"))
    method = recipe.method_config
    assert (recipe.epochs, recipe.cohort.peers, recipe.data.batch_size, recipe.data.validation) == (300, 4, 64, 0.0)
    assert (method.num_negatives, method.temperature, method.beta) == (16384, 3.0, 0.025)  # type: ignore[attr-defined]
    assert (method.contrast_temperature, method.bank_momentum) == (0.1, 0.5)  # type: ignore[attr-defined]
    optim = recipe.optim
    assert (optim.name, optim.lr, optim.nesterov, optim.schedule) == ("sgd", 0.05, True, "cosine")
    assert optim.weight_decay == 5e-4


def test_recipes_are_found_by_name_or_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 7\n")
    assert load_recipe(find_recipe(str(file))).epochs == 7
    with pytest.raises(ConfigError, match=r"unknown recipe 'digits/mcl_okdd'; did you mean 'digits/mcl_okd'\?"):
        find_recipe("digits/mcl_okdd")
    with pytest.raises(ConfigError, match="no recipe file"):
        find_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="no recipe file"):
        find_recipe(str(tmp_path))


@pytest.mark.case(69)
@pytest.mark.parametrize("text", ["epochs = 1\nepochs = 2", "epochs = ", "= 3", "[data\n", "\x00", "a = 1\n" * 3])
def test_a_file_that_is_not_toml_is_refused_by_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_recipe(file)


@pytest.mark.case(69)
def test_a_byte_order_mark_is_no_obstacle_and_other_encodings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "bom.toml"
    file.write_bytes(b"\xef\xbb\xbfepochs = 4\n")
    assert load_recipe(file).epochs == 4
    file.write_bytes(b"\xff\xfee\x00p\x00")
    with pytest.raises(ConfigError, match="cannot read recipe"):
        load_recipe(file)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.case(70, 75)
@settings(max_examples=150, deadline=None)
@given(
    tree=st.dictionaries(st.sampled_from(["epochs", "seed", "data", "optim", "net", "method", "x"]), _JSON, max_size=4),
    words=st.lists(st.text(max_size=12), max_size=3),
)
def test_random_trees_and_words_load_or_are_refused(tree: dict[str, object], words: list[str]) -> None:
    try:
        resolve(tree, words)
    except ConfigError as error:
        assert str(error)
