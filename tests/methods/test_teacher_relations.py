"""Teachers that compare class scores or relations between images: values, gradients, sums and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import coterie.methods  # noqa: F401 (registers them)
from coterie.cli import main
from coterie.cohort import TeacherMethod
from coterie.config import find_recipe, load_recipe, recipe_names
from coterie.core import METHODS, Batch, ConfigError, Facts, PeerFacts, PeerOutput
from coterie.core.combined import CombinedConfig, make_method
from coterie.losses.ramp import linear_ramp
from golden_logits import assert_close, cases, leaf, make_batch, make_facts
from golden_teachers import random, read
from tiny import settings_of

NAMES = ("kd", "dkd", "kd_standardised", "dist", "rkd", "cc", "sp", "pkt")
SCORES = ("kd", "dkd", "kd_standardised", "dist")
STAGES = ((3, 4, 4), (5, 2, 2))
PEER = PeerFacts(embedding_dim=4, num_classes=10, stages=STAGES)
TEACHER = PeerFacts(embedding_dim=7, num_classes=10, stages=((2, 4, 4), (6, 4, 4)))


def know(*peers: PeerFacts, teachers: tuple[PeerFacts, ...]) -> Facts:
    return replace(make_facts(len(peers), dim=peers[0].embedding_dim), peers=peers, teachers=teachers)


def build(name: str, *, peers: int = 1, teachers: int = 1, **knobs: Any) -> TeacherMethod:
    torch.manual_seed(0)
    method = METHODS[name](METHODS[name].Config(**knobs), know(*[PEER] * peers, teachers=(TEACHER,) * teachers))
    assert isinstance(method, TeacherMethod)
    return method.double()


def output(facts: PeerFacts, size: int, seed: int) -> PeerOutput:
    stages = tuple(leaf(random(size, *shape, seed=seed + 20 + k)) for k, shape in enumerate(facts.stages))
    logits, embedding = (random(size, n, seed=seed + k) for k, n in enumerate((facts.num_classes, facts.embedding_dim)))
    return PeerOutput(logits=leaf(3 * logits), embedding=leaf(embedding), stages=stages)


def scene(peers: int = 1, teachers: int = 1, *, size: int = 6, epoch: int = 30) -> tuple[list[PeerOutput], Batch]:
    own = [output(PEER, size, 100 * m) for m in range(peers)]
    goals = tuple(output(TEACHER, size, 1000 + 100 * t) for t in range(teachers))
    return own, replace(make_batch(torch.arange(size) % 4, epoch=epoch), teachers=goals)


def value(method: TeacherMethod, peers: list[PeerOutput], batch: Batch) -> Tensor:
    (term,) = method.added_losses(peers, batch)
    return term.value


def of(case: dict[str, Any], field: str) -> tuple[list[PeerOutput], Batch, Tensor]:
    """A student and a teacher that say what a golden case gives, in one field; the student's tensor is a leaf."""
    inputs = {name: read(values, name, torch.float64) for name, values in case["inputs"].items()}
    student, teacher = (next(given for name, given in inputs.items() if side in name) for side in ("student", "teach"))
    batch = make_batch(inputs.get("labels", torch.zeros(len(student), dtype=torch.int64)), epoch=30)

    def said(tensor: Tensor) -> PeerOutput:
        zero = torch.zeros(len(tensor), 1)
        return replace(PeerOutput(logits=zero, embedding=zero), **{field: (tensor,) if field == "stages" else tensor})

    return [said(student)], replace(batch, teachers=(said(teacher),)), student


GOLDEN: dict[str, tuple[str, str, str, str, dict[str, Any], float]] = {
    "kd": ("kd", "kd", "kd_kl_T4", "logits", {}, 1.0),
    "dkd": ("dkd", "kd", "dkd_a1_b8_T4", "logits", {}, 1.0),
    "dist": ("dist", "kd", "dist_tau1", "logits", {}, 1.0),
    "dist tau 4": ("dist", "kd", "dist_tau4", "logits", {"temperature": 4.0}, 1.0),
    "kd_standardised": ("kd_standardised", "kd", "logit_standardisation_T2_no_T2", "logits", {}, 4.0),
    "rkd": ("rkd", "relations", "rkd_25_50", "embedding", {}, 1.0),
    "rkd distances": ("rkd", "relations", "rkd_distance", "embedding", {"relations": "d", "distance": 1.0}, 1.0),
    "rkd angles": ("rkd", "relations", "rkd_angle", "embedding", {"relations": "a", "angle": 1.0}, 1.0),
    "cc unit": ("cc", "relations", "cc_gaussian_unit_norm", "embedding", {"form": "unit"}, 1.0),
    "cc raw": ("cc", "relations", "cc_gaussian_no_norm", "embedding", {"form": "raw"}, 1.0),
    "sp map": ("sp", "feature_maps", "sp", "stages", {}, 1.0),
    "pkt": ("pkt", "relations", "pkt", "embedding", {}, 1.0),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_defaults_and_knobs_give_the_golden_numbers(name: str) -> None:
    method_name, file, case_name, field, knobs, factor = GOLDEN[name]
    case = cases(file)[case_name]
    peers, batch, student = of(case, field)
    method = build(method_name, **knobs)
    loss = value(method, peers, batch)
    loss.backward()
    expected = case["expected"]
    taken = "student_map" if field == "stages" else "student_logits" if field == "logits" else "student"
    grad = next(grad for key, grad in expected["grad"].items() if key.startswith(taken))
    assert_close(loss, factor * expected["loss"])
    assert_close(student.grad, factor * torch.tensor(grad, dtype=torch.float64))


def test_cc_of_neighbours_is_the_golden_loss_of_both_maps() -> None:
    case = cases("relations")["correlation_repdistiller"]
    peers, batch, student = of(case, "embedding")
    width = student.shape[1]
    facts = PeerFacts(embedding_dim=width, num_classes=10)
    method = METHODS["cc"](METHODS["cc"].Config(embedding_dim=width), know(facts, teachers=(facts,)))
    link = method.double().links[0]
    with torch.no_grad():
        for part in (link.student_map, link.teacher_map):
            part.weight.copy_(torch.eye(width))
            part.bias.zero_()
    assert_close(value(method, peers, batch), case["expected"]["loss"])
    trained = build("cc")
    loss = value(trained, *scene())
    loss.backward()
    assert all(part.grad is not None and bool(part.grad.any()) for part in trained.parameters())
    assert trained.links[0].student_map.weight.shape == (128, 4)
    text = trained.describe()["link 0 <- 1"]
    assert "4 to 128 of the student and 7 to 128 of the teacher" in text


def test_sp_of_embeddings_needs_no_maps() -> None:
    peers, batch = scene()
    method = build("sp", at="embedding")
    assert not method.requirements().stage_maps and build("sp").requirements().stage_maps
    bare = replace(batch, teachers=tuple(replace(teacher, stages=()) for teacher in batch.teachers))
    loss = value(method, [replace(peers[0], stages=())], bare)

    def similarities(rows: Tensor) -> Tensor:
        gram = rows @ rows.T
        return gram / gram.square().sum(dim=1, keepdim=True).sqrt()

    own, goal = (similarities(out.embedding.detach()) for out in (peers[0], batch.teachers[0]))
    assert_close(loss, (own - goal).square().mean())


READS: dict[str, Callable[[PeerOutput], Tensor]] = {name: lambda out: out.logits for name in SCORES}
READS |= {name: lambda out: out.embedding for name in ("rkd", "cc", "pkt")} | {"sp": lambda out: out.stages[-1]}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_goes_to_the_student_alone(name: str) -> None:
    peers, batch = scene(2)
    value(build(name, peers=2), peers, batch).backward()
    taught = READS[name](peers[1]).grad
    assert taught is not None and bool(taught.isfinite().all()) and bool(taught.any())
    others = [peers[0], *batch.teachers]
    tensors = [part for out in others for part in (out.logits, out.embedding, *out.stages)]
    assert [part.grad for part in tensors] == [None] * len(tensors)


@pytest.mark.parametrize("name", NAMES)
def test_mean_over_teachers_and_sum_over_students(name: str) -> None:
    peers, batch = scene(2, 2)
    method = build(name, peers=2, teachers=2, students="all")
    assert method.pairs == ((0, 2), (0, 3), (1, 2), (1, 3))
    known = [*peers, *batch.teachers]
    single = [link(known[s], known[t], batch) for (s, t), link in zip(method.pairs, method.links, strict=True)]
    assert len({round(float(one.detach()), 9) for one in single}) == 4
    assert_close(value(method, peers, batch), torch.stack(single).detach().sum() / 2)


@pytest.mark.parametrize("name", NAMES)
def test_behind_another_method_the_term_is_the_same(name: str) -> None:
    peers, batch = scene(2)
    alone = build(name, peers=2)
    config = CombinedConfig(parts=(("independent", METHODS["independent"].Config()), (name, alone.config)))
    torch.manual_seed(0)
    both = make_method(f"independent+{name}", config, alone.facts).double()
    terms = {term.name: term for term in both.losses(peers, batch)}
    own = {term.name: term for term in alone.losses(peers, batch)}
    assert list(terms) == ["task", name] == list(own)
    assert (terms["task"].weight, own["task"].weight) == (1.0, alone.config.task)
    assert terms[name].weight == own[name].weight == alone.config.weight
    assert torch.equal(terms[name].value, own[name].value)


WEIGHTS = {"dkd": (1.0, 1.0), "kd_standardised": (9.0, 0.1), "dist": (2.0, 1.0), "rkd": (1.0, 1.0)}
WEIGHTS |= {"kd": (0.9, 0.1), "cc": (0.02, 1.0), "sp": (3000.0, 1.0), "pkt": (30000.0, 1.0)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_the_published_ones(name: str) -> None:
    config = METHODS[name].Config()
    assert (config.weight, config.task) == WEIGHTS[name]


def test_dkd_grows_over_its_first_epochs() -> None:
    full = {epoch: float(value(build("dkd"), *scene(epoch=epoch)).detach()) for epoch in (0, 9, 19, 50)}
    assert full[19] == full[50] > 0
    assert full[0] == pytest.approx(full[50] / 20) and full[9] == pytest.approx(full[50] / 2)
    assert float(value(build("dkd", warmup_epochs=0), *scene(epoch=0)).detach()) == full[50]
    assert float(linear_ramp(torch.tensor(0), 0)) == 1.0


@pytest.mark.parametrize("name", SCORES)
def test_other_classes_are_refused(name: str) -> None:
    other = replace(TEACHER, num_classes=11)
    with pytest.raises(ConfigError, match=rf"^{name} compares class scores, but the teacher knows 11 classes and the"):
        METHODS[name](METHODS[name].Config(), know(PEER, teachers=(other,)))


@pytest.mark.parametrize("name", ["rkd", "cc", "sp", "pkt"])
def test_embeddings_of_a_teacher_of_other_classes_are_compared(name: str) -> None:
    METHODS[name](METHODS[name].Config(), know(PEER, teachers=(replace(TEACHER, num_classes=11),)))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_sp_refuses_networks_without_stages(side: str) -> None:
    student, teacher = (replace(facts, stages=()) if side == name else facts for name, facts in SIDES.items())
    facts = know(student, teachers=(teacher,))
    with pytest.raises(ConfigError, match=rf"the network of the {side} names none; .* method\.at=embedding"):
        METHODS["sp"](METHODS["sp"].Config(), facts)
    METHODS["sp"](METHODS["sp"].Config(at="embedding"), facts)


SIDES = {"student": PEER, "teacher": TEACHER}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        *((name, {"temperature": 0.0}) for name in SCORES),
        ("dkd", {"beta": -1.0}),
        ("dkd", {"warmup_epochs": -1}),
        ("dist", {"inter": -1.0}),
        ("rkd", {"angle": -1.0}),
        ("cc", {"gamma": 0.0}),
        ("cc", {"embedding_dim": 0}),
        ("pkt", {"weight": -1.0}),
    ],
)
def test_knobs_out_of_range(name: str, knobs: dict[str, Any]) -> None:
    ((knob, given),) = knobs.items()
    with pytest.raises(ConfigError, match=rf"{knob}={given}.*; give "):
        METHODS[name].Config(**knobs)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The run of a network that knows three classes, where the student's data have four."""
    monkeypatch.chdir(tmp_path)
    words = ["train", "synthetic/mcl_okd", *TINY, "method=independent", "cohort.nets=cnn4_w8", "data.classes=3"]
    assert main([*words, "--out", "big"]) == 0
    capsys.readouterr()
    return "big"


TINY = [word for word in settings_of("independent") if not word.startswith("cohort.nets")] + ["epochs=1"]
STUDENT = ["train", "synthetic/mcl_okd", *TINY, "cohort.nets=cnn4_w4", "--out", "small"]


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_from_the_command_line(teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    taught = [*STUDENT, f"teacher.weights={teacher}"]
    for name in SCORES:
        line = complaint([*taught, f"method={name}"], capsys)
        assert line.startswith(f"coterie: {name} compares class scores, but the teacher knows 3 classes")
    assert "learns from a teacher and there is none" in complaint([*STUDENT, "method=pkt"], capsys)
    assert "form is 'unti'; did you mean 'unit'?" in complaint([*taught, "method=cc", "method.form=unti"], capsys)
    assert not Path("small").exists()
    assert main([*taught, "method=independent+cc+sp"]) == 0
    rows = [json.loads(row) for row in Path("small/metrics.jsonl").read_text().splitlines()]
    assert {"task", "cc", "sp"} <= set(next(row for row in rows if row["kind"] == "train")["terms"])


PAIRS = [name for name in recipe_names() if name.startswith("cifar100/teacher/") and "_from_" in name]


def test_the_thirteen_pairs_and_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(PAIRS) == 13
    for name in PAIRS:
        recipe = load_recipe(find_recipe(name))
        student, _, teacher = name.removeprefix("cifar100/teacher/").partition("_from_")
        assert recipe.net.name.startswith(student) and recipe.teacher.nets[0].startswith(teacher)
        slow = student.startswith(("mobilenet", "shufflenet"))
        assert (recipe.optim.lr, recipe.optim.milestones) == (0.01 if slow else 0.05, (150, 180, 210))
        assert (recipe.epochs, recipe.data.batch_size, recipe.optim.nesterov, recipe.cohort.peers) == (
            240,
            64,
            False,
            1,
        )
        line = complaint(["train", name, "data.name=synthetic"], capsys)
        assert f"teacher.nets names {recipe.teacher.nets[0]}, and teacher.weights 0 sources" in line
        assert "teacher.weights=RUN_OR_FILE" in line
