"""Several methods as one: terms, needs, memories and errors."""

import tomllib

import pytest
import torch

import coterie.methods  # noqa: F401 (registers them)
from coterie.config import resolve, to_toml
from coterie.core import METHODS, ConfigError, Needs, UnknownName
from coterie.core.combined import Combined, CombinedConfig, _joined, make_method, split_name
from coterie.testing import Scene, make_scene


def combined(*names: str, **knobs: dict[str, object]) -> tuple[Combined, Scene]:
    scene = make_scene("kd", METHODS["kd"].Config(students="all"))
    config = CombinedConfig(parts=tuple((name, METHODS[name].Config(**knobs.get(name, {}))) for name in names))
    torch.manual_seed(1)
    method = make_method("+".join(names), config, scene.method.facts)
    assert isinstance(method, Combined)
    return method, scene


def test_terms_are_those_of_the_first_and_what_the_others_add() -> None:
    method, scene = combined("dml", "kd")
    peers = scene.cohort(scene.batch.views)
    terms = {term.name: (float(term.value.detach()), term.weight) for term in method.losses(peers, scene.taught)}
    alone = METHODS["dml"](METHODS["dml"].Config(), scene.method.facts)
    first = {term.name: float(term.value.detach()) for term in alone.losses(peers, scene.taught)}
    assert list(terms) == ["task", "mutual", "kd"]
    assert {name: terms[name][0] for name in first} == first
    leader = METHODS["kd"](METHODS["kd"].Config(), scene.method.facts)
    added = next(iter(leader.added_losses(peers, scene.taught)))
    assert terms["kd"] == (float(added.value.detach()), 0.9)


def test_memories_and_parameters_of_every_part_are_kept_once() -> None:
    method, _ = combined("mcl_okd", "kd")
    assert list(method.memories) == [f"mcl_okd/{key}" for key in make_scene("mcl_okd").method.memories]
    method.double()
    assert all(
        tensor.dtype != torch.float32 for memory in method.memories.values() for tensor in memory.state().values()
    )
    assert len({id(parameter) for parameter in method.parameters()}) == len(list(method.parameters()))


def test_needs_are_the_largest() -> None:
    method, _ = combined("mcl", "kd")
    assert method.requirements() == Needs(**{**_asdict(METHODS["mcl"].needs), "teacher": True})
    method, _ = combined("kdcl", "kd")
    assert method.requirements().views == "per_peer"


def _asdict(needs: Needs) -> dict[str, object]:
    return {name: getattr(needs, name) for name in Needs.__dataclass_fields__}


def test_ensemble_is_that_of_the_first() -> None:
    method, scene = combined("okddip", "kd")
    peers = scene.cohort(scene.batch.views)
    expected = torch.stack([peer.logits for peer in peers[:2]]).mean(dim=0)
    torch.testing.assert_close(method.ensemble(peers), expected)


def test_a_method_that_adds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mcl_okd adds nothing to kd.*put it first"):
        combined("kd", "mcl_okd")


def test_two_outer_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="outer steps"):
        _joined([Needs(outer_every=2), Needs(outer_every=3)])


def test_names() -> None:
    assert split_name("a + b") == ("a", "b")
    with pytest.raises(ConfigError, match="twice"):
        split_name("kd+kd")


@pytest.mark.parametrize("written", [["mcl_okd", "kd"], "mcl_okd+kd", "mcl_okd, kd"])
def test_recipes_name_several_methods(written: object) -> None:
    recipe = resolve({"method": {"name": written, "kd": {"temperature": 2.0}}}, ["method.mcl_okd.beta=0.5"])
    assert recipe.method == "mcl_okd+kd"
    config = recipe.method_config
    assert isinstance(config, CombinedConfig)
    knobs = dict(config.parts)
    assert (knobs["kd"].temperature, knobs["mcl_okd"].beta) == (2.0, 0.5)
    assert resolve(tomllib.loads(to_toml(recipe))) == recipe


def test_method_as_a_list_at_the_top() -> None:
    assert resolve({"method": ["dml", "kd"]}).method == "dml+kd"
    assert resolve({}, ['method=["dml", "kd"]']).method == "dml+kd"


def test_knobs_without_the_name_of_their_method_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'method\.beta'; did you mean 'method\.mcl_okd\.beta'"):
        resolve({}, ["method=mcl_okd+kd", "method.beta=1"])
    with pytest.raises(ConfigError, match=r"method\.kd\.temperature is -1.0; give a number above 0"):
        resolve({}, ["method=mcl_okd+kd", "method.kd.temperature=-1"])
    with pytest.raises(UnknownName, match="kdd"):
        resolve({}, ["method=mcl_okd+kdd"])
