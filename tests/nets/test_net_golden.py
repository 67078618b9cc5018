"""Parameters, layers, multiply-adds and shapes of the official definitions, single and branched."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coterie.cohort import Cohort
from coterie.nets import NETS, StagedNet
from coterie.nets.branching import BRANCH_POINTS
from coterie.nets.cost import count_parameters, multiply_adds

GOLDEN = Path(__file__).parents[1] / "golden" / "networks.json"
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
ABSENT = re.compile("layerwise|okddip_original.*(vgg|branches4/dense)")  # the first with its method, the others slips
OTHER_NAMES = {
    "hcgnet_A1": "hcgnet_a1",
    "hcgnet_A2": "hcgnet_a2",
    "ShuffleNetV2_05x": "shufflenet_v2_05x",
    "ShuffleNetV2_1x": "shufflenet_v2_1x",
    "repdistiller/ShuffleV1": "shufflenet_v1_stem1",
    "repdistiller/ShuffleV2": "shufflenet_v2_stem1",
    "repdistiller/MobileNetV2": "mobilenet_v2_05x",
    "repdistiller/ResNet50": "resnet50_cifar",
    "densenetd40k12": "densenet40_12",
    "resnet110": "resnet110_bottleneck",
    "repdistiller/resnet110": "resnet110_basic",
    "repdistiller/vgg16": "vgg16_3pool",
    "one_original/resnet110": "resnet164_bottleneck",
}
HERE = sorted(name for name in CASES if not ABSENT.search(name))
PLAIN = [name for name in HERE if "plain" in name or "repdistiller" in name]
DEEP = re.compile("hcgnet|resnet110|densenet")


def deep_ones_slow(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if DEEP.search(name) else ()) for name in names]


def our_name(case: str) -> str:
    family, *_ = case.split("/")
    methods = {"mcl_okd", "dml", "cl_ilr", "one", "okddip", "plain"}
    parts = [part for part in case.split("/")[1:] if part not in methods]
    (given,) = [part for part in parts if not part.startswith(("classes", "branches"))]
    given = given.removesuffix("_cifar").removesuffix("_imagenet")
    return OTHER_NAMES.get(f"{family}/{given}", OTHER_NAMES.get(given, given))


def layout(case: str, net: str, peers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shared stages and tree, method by method; MCL of two networks and plain networks share nothing."""
    if case.startswith("mcl_networks4") or "/mcl_okd/" in case or "/dml/" in case:
        return (BRANCH_POINTS[net].early,), ()
    if "/cl_ilr/" in case:
        return (), BRANCH_POINTS[net].tree(peers)
    if "branches" in case:
        return (BRANCH_POINTS[net].late,), ()
    return (), ()


def build(name: str, classes: int, image_size: int, peers: int, layout: tuple[tuple[int, ...], ...]) -> Cohort:
    shared, tree = layout
    with torch.device("meta"):
        nets = [NETS[name](num_classes=classes, image_size=image_size) for _ in range(peers)]
    return Cohort(nets, shared=sum(shared), tree=tree).to_empty(device="cpu")


def arguments(case: dict[str, Any]) -> tuple[str, int, int, int, tuple[tuple[int, ...], ...]]:
    name, size, peers = our_name(case["name"]), case["input_shape"][-1], case.get("networks") or 1
    return name, case["classes"], size, peers, layout(case["name"], name, peers)


def count(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in net.modules())


@cache  # several papers define the same network
def counted(
    name: str, classes: int, image_size: int, peers: int, layout: tuple[tuple[int, ...], ...]
) -> dict[str, int]:
    cohort = build(name, classes, image_size, peers, layout)
    return {
        "parameters": count_parameters(cohort),
        "buffers": sum(buffer.numel() for buffer in cohort.buffers()),
        "convolutions": count(cohort, nn.Conv2d),
        "batch_norms": count(cohort, nn.BatchNorm2d),
        "linears": count(cohort, nn.Linear),
        "multiply_adds_per_image": multiply_adds(cohort, (1, 3, image_size, image_size), batch_dim=1),
    }


def extras(case: dict[str, Any]) -> dict[str, int]:
    """What the gate of ONE or the attention of OKDDip adds to the stages; it is no part of a network here.

    The tree of DenseNet in CL-ILR has four transitions of which it runs two; the other two are no part of it here.
    """
    children, shapes = case["expected"]["parameters_of_each_child"], case["expected"]["child_output_shapes_batch2"]
    linears = [name for name in children if name in {"gate_fc", "control_v1", "query_weight", "key_weight"}]
    norms = [name for name in children if name in {"gate_norm", "bn_v1"}]
    width = {name: shape[-1] for name, shape in shapes if name in {*linears, *norms}}
    calls = {name: [called for called, _ in shapes].count(name) for name in linears}
    ran = {name for name, _ in shapes}
    idle = sum("tran" in name.lower() and name not in ran for name in children)
    weights = {name: children[name] - width[name] * name.startswith(("gate", "control")) for name in linears}
    return {
        "parameters": sum(children[name] for name in (*linears, *norms)) + idle * (2 * 120 + 120 * 60),
        "buffers": sum(2 * width[name] + 1 for name in norms) + idle * (2 * 120 + 1),
        "convolutions": idle,
        "linears": len(linears),
        "batch_norms": len(norms) + idle,
        "multiply_adds_per_image": sum(calls[name] * weights[name] for name in linears),
    }


@pytest.mark.parametrize("name", deep_ones_slow(HERE))
def test_counts_are_those_of_the_official_definition(name: str) -> None:
    expected, extra = CASES[name]["expected"], extras(CASES[name])
    ours = counted(*arguments(CASES[name]))
    assert ours == {what: expected[what] - extra.get(what, 0) for what in ours}


def in_order(ours: list[list[int]], shapes: list[Any]) -> bool:
    theirs = iter([shape if isinstance(shape[0], int) else shape[0] for shape in shapes])
    return all(shape in theirs for shape in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", deep_ones_slow(PLAIN))
def test_stages_end_where_those_of_the_official_definition_do(name: str) -> None:
    case = CASES[name]
    net = build(*arguments(case))[0]
    assert isinstance(net, StagedNet)
    output = net.eval().to("meta").tap(torch.empty(case["input_shape"], device="meta"), stage_maps=True)
    lists = [[shape for _, shape in case["expected"]["child_output_shapes_batch2"]]]
    lists.append(case["expected"].get("feature_list_shapes", []))
    ours = [list(stage.shape) for stage in output.stages]
    assert any(in_order(ours, shapes) for shapes in lists), (ours, lists)
    assert output.logits.shape[-1] == case["classes"]


def test_most_of_the_official_definitions_exist_here() -> None:
    assert len(HERE) >= 93
    assert {our_name(name) for name in HERE} <= set(NETS)
