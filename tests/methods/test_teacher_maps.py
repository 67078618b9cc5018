"""Methods that compare maps with a teacher's: their values by hand, who learns, which shapes they take and refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.cli import main
from coterie.cohort import Link, TeacherMethod
from coterie.cohort.connectors import Connector
from coterie.cohort.facts import facts_of
from coterie.core import METHODS, Batch, ConfigError, Facts, PeerFacts, PeerOutput
from coterie.losses.feature_maps import at_loss, fsp_loss, ft_loss, nst_loss
from coterie.losses.responses import ab_loss, overhaul_margin, vid_loss
from coterie.nets import NETS
from coterie.testing import check_method
from tiny import settings_of

NAMES = ("fitnets", "at", "nst", "fsp", "ab", "ft", "vid", "overhaul")
Shapes = tuple[tuple[int, int, int], ...]

SMALL: Shapes = ((4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2))
WIDE: Shapes = ((4, 8, 8), (8, 8, 8), (10, 4, 4), (12, 2, 2))
COARSE: Shapes = ((4, 8, 8), (8, 4, 4), (10, 2, 2), (12, 1, 1))
FINE: Shapes = ((4, 16, 16), (8, 16, 16), (10, 8, 8), (12, 4, 4))
ODD: Shapes = ((4, 9, 9), (8, 7, 7), (10, 5, 5), (12, 3, 3))
DEEP: Shapes = ((4, 16, 16), (4, 8, 8), (8, 8, 8), (10, 4, 4), (12, 2, 2))


def facts_for(shapes: Shapes) -> PeerFacts:
    norms = tuple((torch.rand(c) + 0.5, torch.randn(c)) for c, *_ in shapes[1:])
    return PeerFacts(embedding_dim=5, num_classes=3, stages=shapes, preactivations=shapes[1:], norms=norms)


def output_for(shapes: Shapes, dtype: torch.dtype = torch.float64) -> PeerOutput:
    """Random outputs, all of them leaves that take gradient."""
    stages, inner = ([torch.randn(6, *s, dtype=dtype) for s in part] for part in (shapes, shapes[1:]))
    stages = [maps.relu() for maps in stages]
    logits, embedding = torch.randn(6, 3, dtype=dtype), torch.randn(6, 5, dtype=dtype)
    for leaf in (*stages, *inner, logits, embedding):
        leaf.requires_grad_()
    return PeerOutput(logits=logits, embedding=embedding, stages=tuple(stages), preactivations=tuple(inner))


def batch_at(epoch: int, *teachers: PeerOutput) -> Batch:
    zero, six = torch.zeros((), dtype=torch.int64), torch.arange(6)
    views = torch.zeros(1, 6, 1, 1, 1)
    return Batch(views=views, labels=six % 3, indices=six, epoch=zero + epoch, step=zero, teachers=teachers)


def build(name: str, student: Shapes, teacher: Shapes, *, peers: int = 1, **knobs: object) -> TeacherMethod:
    torch.manual_seed(1)
    facts = Facts(
        num_peers=peers,
        leader=peers - 1,
        num_classes=3,
        embedding_dims=(5,) * peers,
        labels=torch.arange(6) % 3,
        num_epochs=100,
        peers=(facts_for(student),) * peers,
        teachers=(facts_for(teacher),),
    )
    method = METHODS[name](METHODS[name].Config(**knobs), facts)
    assert isinstance(method, TeacherMethod)
    for layer in method.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -1, 1)
    return method.double()


def only_link(method: TeacherMethod) -> Link:
    (link,) = method.links
    assert isinstance(link, Link)
    return link


def norm(maps: Tensor, layer: nn.Module) -> Tensor:
    """Batch norm by hand."""
    assert isinstance(layer, nn.BatchNorm2d)
    centred = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
    scaled = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + layer.eps).sqrt()
    return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]


def connected(connector: nn.Module, maps: Tensor) -> Tensor:
    """A connector with a 1x1 convolution by hand."""
    assert isinstance(connector, Connector)
    layer, after, *_ = connector.body
    return norm(torch.einsum("bchw,dc->bdhw", maps, layer.weight[:, :, 0, 0]), after)


def fitnets(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    return (connected(link.regressor, student.stages[2]).relu() - teacher.stages[2]).square().mean()


def at(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    return sum(at_loss(*pair) for pair in zip(student.stages[1:], teacher.stages[1:], strict=True))


def nst(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    return sum(nst_loss(*pair) for pair in zip(student.stages[1:], teacher.stages[1:], strict=True))


def fsp(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    return fsp_loss(student.stages, teacher.stages)


def ab(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    owns = [connected(*pair) for pair in zip(link.connectors, student.preactivations, strict=True)]
    return ab_loss(owns, teacher.preactivations, margin=1.0)


def overhaul(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for k, (connector, maps) in enumerate(zip(link.connectors, student.preactivations, strict=True)):
        own = connected(connector, maps)
        goal = torch.maximum(teacher.preactivations[k], getattr(link, f"margin{k}")[:, None, None])
        counts = ~((own <= goal) & (goal <= 0))
        total = total + ((own - goal).square() * counts).sum() / 6 / 2 ** (2 - k)
    return total / 1000


def vid(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for head, own, goal in zip(link.heads, student.stages[1:], teacher.stages[1:], strict=True):
        for k, layer in enumerate(head.layers):
            own = torch.einsum("bchw,dc->bdhw", own, layer.weight)
            own = own.relu() if k < 2 else own
        total = total + vid_loss(own, goal, head.raw_scale)
    return total


def ft(link: Link, student: PeerOutput, teacher: PeerOutput) -> Tensor:
    own, goal = student.stages[-1], teacher.stages[-1]
    for k in (0, 3, 6):
        own, goal = (
            F.leaky_relu(norm(F.conv2d(maps, body[k].weight, padding=1), body[k + 1]), 0.1)
            for maps, body in ((own, link.translator), (goal, link.encoder))
        )
    return ft_loss(own, goal)


BY_HAND: dict[str, Callable[[Link, PeerOutput, PeerOutput], Tensor]] = {
    "fitnets": fitnets,
    "at": at,
    "nst": nst,
    "fsp": fsp,
    "ab": ab,
    "ft": ft,
    "vid": vid,
    "overhaul": overhaul,
}


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_pure_loss_through_the_connectors(name: str) -> None:
    shapes = SMALL, SMALL if name == "fsp" else WIDE
    method = build(name, *shapes, initial_epochs=0)
    student, teacher = map(output_for, shapes)
    batch = batch_at(0, teacher)
    terms = {term.name: term for term in method.losses([student], batch)}
    expected = BY_HAND[name](only_link(method), student, teacher)
    assert terms[name].value.dtype == torch.float64
    torch.testing.assert_close(terms[name].value, expected, rtol=1e-9, atol=1e-12)
    assert terms[name].weight == METHODS[name].Config().weight
    torch.testing.assert_close(terms["task"].value, F.cross_entropy(student.logits, batch.labels))


@pytest.mark.parametrize("teacher", [WIDE, COARSE, FINE, ODD, DEEP], ids=["wide", "coarse", "fine", "odd", "deep"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_student_and_connectors_only(name: str, teacher: Shapes) -> None:
    if name == "fsp":
        teacher = tuple((own[0], *goal[1:]) for own, goal in zip(SMALL, teacher[-4:], strict=True))
    if name == "ft" and teacher is COARSE:
        with pytest.raises(ConfigError, match="ft compares positions of the last maps, 8x2x2 to 12x1x1, and one"):
            build(name, SMALL, teacher)
        return
    method = build(name, SMALL, teacher, initial_epochs=0)
    outputs = output_for(SMALL), output_for(teacher)
    terms = {term.name: term.value for term in method.losses([outputs[0]], batch_at(0, outputs[1]))}
    sum(value for key, value in terms.items() if key != "task").backward()
    used = outputs[0].preactivations if name in ("ab", "overhaul") else outputs[0].stages
    assert any(maps.grad is not None and maps.grad.abs().sum() > 0 for maps in used)
    assert outputs[0].logits.grad is None
    assert [part for part in (*outputs[1].stages, *outputs[1].preactivations) if part.grad is not None] == []
    for key, weight in method.named_parameters():
        assert weight.grad is not None and bool(weight.grad.isfinite().all()), key


EQUALLY_LARGE = {"fitnets", "ab", "overhaul"}


@pytest.mark.parametrize("name", sorted(EQUALLY_LARGE))
def test_what_was_built_is_told(name: str) -> None:
    (line,) = [text for key, text in build(name, SMALL, COARSE).describe().items() if key.startswith("link")]
    assert "6x4x4 to 10x2x2 by 3x3 convolution of stride 2" in line


@pytest.mark.parametrize("name", ["at", "nst", "vid"])
def test_pooling_is_told(name: str) -> None:
    (line,) = [text for key, text in build(name, SMALL, COARSE).describe().items() if key.startswith("link")]
    assert "averaged to the smaller size: 4x8x8 to 8x4x4, 6x4x4 to 10x2x2, 8x2x2 to 12x1x1" in line


def test_maps_of_one_shape_need_no_connector_in_ab() -> None:
    method = build("ab", SMALL, (*WIDE[:3], SMALL[3]), initial_epochs=0)
    assert [isinstance(connector, Connector) for connector in only_link(method).connectors] == [True, True, False]
    same = build("ab", SMALL, SMALL, initial_epochs=0)
    student, teacher = output_for(SMALL), output_for(SMALL)
    value = only_link(same)(student, teacher, batch_at(0))
    torch.testing.assert_close(value, ab_loss(student.preactivations, teacher.preactivations))


def weighted(method: TeacherMethod, peers: Sequence[PeerOutput], batch: Batch) -> dict[str, float]:
    return {term.name: float(term.weight) for term in method.losses(peers, batch)}


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_the_initial_stage_of_students_knows_no_labels(name: str) -> None:
    method = build(name, SMALL, SMALL, peers=3, weight=2.0, task=0.5)
    peers, teacher = [output_for(SMALL) for _ in range(3)], output_for(SMALL)
    assert weighted(method, peers, batch_at(29, teacher)) == {"task": 0.0, "others": 0.5, name: 2.0}
    assert weighted(method, peers, batch_at(30, teacher)) == {"task": 0.5, "others": 0.5, name: 0.0}
    values = {term.name: term.value for term in method.losses(peers, batch_at(0, teacher))}
    labels = batch_at(0).labels
    torch.testing.assert_close(values["task"], F.cross_entropy(peers[2].logits, labels))
    others = F.cross_entropy(peers[0].logits, labels) + F.cross_entropy(peers[1].logits, labels)
    torch.testing.assert_close(values["others"], others)
    added = [float(term.weight) for epoch in (29, 30) for term in method.added_losses(peers, batch_at(epoch, teacher))]
    assert added == [2.0, 0.0]


def test_factors_are_paraphrased_first_and_followed_then() -> None:
    method = build("ft", SMALL, WIDE)
    student, teacher = output_for(SMALL), output_for(WIDE)
    assert weighted(method, [student], batch_at(29, teacher)) == {"task": 1.0, "ft": 0.0, "paraphraser": 1.0}
    assert weighted(method, [student], batch_at(30, teacher)) == {"task": 1.0, "ft": 200.0, "paraphraser": 0.0}
    assert [term.name for term in method.added_losses([student], batch_at(0, teacher))] == ["ft", "paraphraser"]
    method.losses([student], batch_at(30, teacher)).total().backward()
    link = only_link(method)
    assert all(not weight.grad.any() for part in (link.encoder, link.decoder) for weight in part.parameters())
    assert all(bool(weight.grad.any()) for weight in link.translator.parameters())


def test_a_paraphraser_learns_to_undo_its_factors() -> None:
    method = build("ft", SMALL, WIDE)
    teacher = output_for(WIDE)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    errors = []
    for _ in range(60):
        terms = {term.name: term for term in method.losses([output_for(SMALL)], batch_at(0, teacher))}
        optimizer.zero_grad()
        (terms["paraphraser"].value * terms["paraphraser"].weight).backward()
        optimizer.step()
        errors.append(float(terms["paraphraser"].value.detach()))
    assert errors[-1] < 0.5 * errors[0]


def test_weight_decay_does_not_change_the_factors_that_are_followed() -> None:
    method = build("ft", SMALL, WIDE)
    student, teacher = output_for(SMALL), output_for(WIDE)
    link = only_link(method)
    before = link(student, teacher, batch_at(30))
    with torch.no_grad():
        for weight in link.encoder.parameters():
            weight *= 0.6
    torch.testing.assert_close(link(student, teacher, batch_at(30)), before, rtol=1e-3, atol=0)


def test_margins_are_those_of_the_teachers_batch_norms_and_are_kept() -> None:
    method = build("overhaul", SMALL, WIDE)
    kept = method.state_dict()
    for k, part in enumerate(method.facts.teachers[0].norms):
        assert part is not None
        torch.testing.assert_close(kept[f"links.0.margin{k}"].float(), overhaul_margin(*part))


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8", "vgg8"), ("wrn_16_1", "resnet8"), ("shufflenet_v2_05x", "wrn_16_1")]
)
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"fsp"}))
def test_real_networks_of_different_families(name: str, student: str, teacher: str) -> None:
    nets = [NETS[part](num_classes=3) for part in (student, teacher)]
    found = [facts_of(net, (3, 32, 32)) for net in nets]
    facts = Facts(
        num_peers=1,
        leader=0,
        num_classes=3,
        embedding_dims=(found[0].embedding_dim,),
        labels=torch.arange(6) % 3,
        num_epochs=100,
        peers=(found[0],),
        teachers=(found[1],),
    )
    method = METHODS[name](METHODS[name].Config(), facts)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    needs = method.requirements()
    with torch.no_grad():
        told = nets[1].eval().tap(images, needs.stage_maps, needs.preactivations)
    output = nets[0].tap(images, needs.stage_maps, needs.preactivations)
    total = method.losses([output], batch_at(40 if name == "ft" else 0, told)).total()
    total.backward()
    assert bool(total.isfinite()) and bool(nets[0].stem[0].weight.grad.any() if student != "wrn_16_1" else True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ab", "fsp", "ft"])
def test_the_contract_holds_without_an_initial_stage(name: str) -> None:
    check_method(name, METHODS[name].Config(initial_epochs=0))


KNOBS = {
    "fitnets": {"stage": -1},
    "at": {"p": 0},
    "ab": {"margin": -1.0},
    "ft": {"share": 0.0},
    "vid": {"variance": 0.0},
    "overhaul": {"initial_epochs": -1},
}


@pytest.mark.parametrize("name", KNOBS)
def test_knobs_that_make_no_sense(name: str) -> None:
    (knob,) = KNOBS[name]
    with pytest.raises(ConfigError, match=rf"{knob}={KNOBS[name][knob]}( of|;)"):
        METHODS[name].Config(**KNOBS[name])


def test_margins_that_cannot_be_had() -> None:
    facts = facts_for(WIDE)
    method = build("overhaul", SMALL, WIDE)
    with pytest.raises(ConfigError, match="pair 2 of 3 of the teacher's maps has none for all channels"):
        method.link(facts_for(SMALL), replace(facts, norms=(facts.norms[0], None, facts.norms[2])))


REFUSED = {
    **{f"{name} without stages": ([f"method={name}", "cohort.nets=tiny_noisy,cnn4_w4"], "teacher") for name in NAMES},
    "student without stages": (["method=vid", "cohort.nets=cnn4_w4,tiny_noisy"], "the student has none that are known"),
    "channels": (
        ["method=fsp", "cohort.nets=cnn4_w6,cnn4_w4"],
        "student's maps have [4, 4, 8, 8] channels and the teacher's [6, 6, 12, 12]; choose networks of equal widths",
    ),
    "stage": (
        ["method=fitnets", "cohort.nets=cnn4_w4,cnn4_w4", "method.stage=4"],
        "fitnets compares stage 4, which the student does not have; give method.stage from 0 to 3",
    ),
    "no epochs left": (
        ["method=ab", "cohort.nets=cnn4_w4,cnn4_w4", "method.initial_epochs=2"],
        "initial_epochs=2 leaves none of 2 epochs",
    ),
    "no norms": (
        ["method=overhaul", "cohort.nets=shufflenet_v2_05x,cnn4_w4"],
        "overhaul takes its margins from batch norms",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_and_status_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = REFUSED[name]
    method = words[0].removeprefix("method=")
    command = ["train", "synthetic/mcl_okd", *words[:1], *settings_of(method), "cohort.frozen=0", *words[1:]]
    assert main(command) == 2, capsys.readouterr()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("coterie: ") and expected in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
