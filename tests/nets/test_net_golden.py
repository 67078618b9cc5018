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
from coterie.nets.cost import count_parameters, multiply_adds

GOLDEN = Path(__file__).parents[1] / "golden" / "networks.json"
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
ABSENT = re.compile("hcgnet|shuffle|mobilenet|ResNet50|layerwise|cl_ilr|okddip_original.*(vgg|branches4/dense)", re.I)
OTHER_NAMES = {
    "densenetd40k12": "densenet40_12",
    "resnet110": "resnet110_bottleneck",
    "repdistiller/resnet110": "resnet110_basic",
    "repdistiller/vgg16": "vgg16_3pool",
    "one_original/resnet110": "resnet164_bottleneck",
}
HERE = sorted(name for name in CASES if not ABSENT.search(name))
PLAIN = [name for name in HERE if "plain" in name or "repdistiller" in name]


def our_name(case: str) -> str:
    family, *_ = case.split("/")
    methods = {"mcl_okd", "dml", "one", "okddip", "plain"}
    parts = [part for part in case.split("/")[1:] if part not in methods]
    (given,) = [part for part in parts if not part.startswith(("classes", "branches"))]
    given = given.removesuffix("_cifar").removesuffix("_imagenet")
    return OTHER_NAMES.get(f"{family}/{given}", OTHER_NAMES.get(given, given))


def shared_stages(case: str) -> int:
    """Section by section of the published code: MCL-OKD and DML branch after one stage, ONE and OKDDip after two."""
    if case.startswith("mcl_networks4") or "/mcl_okd/" in case or "/dml/" in case:
        return 2 if "vgg" in case else 1
    if "branches" in case:
        return 3 if "vgg" in case else 2
    return 0


def build(name: str, classes: int, image_size: int, peers: int, shared: int) -> Cohort:
    with torch.device("meta"):
        nets = [NETS[name](num_classes=classes, image_size=image_size) for _ in range(peers)]
    return Cohort(nets, shared=shared).to_empty(device="cpu")


def arguments(case: dict[str, Any]) -> tuple[str, int, int, int, int]:
    name, size = case["name"], case["input_shape"][-1]
    return our_name(name), case["classes"], size, case.get("networks") or 1, shared_stages(name)


def count(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in net.modules())


@cache  # several papers define the same network
def counted(name: str, classes: int, image_size: int, peers: int, shared: int) -> dict[str, int]:
    cohort = build(name, classes, image_size, peers, shared)
    return {
        "parameters": count_parameters(cohort),
        "buffers": sum(buffer.numel() for buffer in cohort.buffers()),
        "convolutions": count(cohort, nn.Conv2d),
        "batch_norms": count(cohort, nn.BatchNorm2d),
        "linears": count(cohort, nn.Linear),
        "multiply_adds_per_image": multiply_adds(cohort, (1, 3, image_size, image_size), batch_dim=1),
    }


def extras(case: dict[str, Any]) -> dict[str, int]:
    """What the gate of ONE or the attention of OKDDip adds to the stages; it is no part of a network here."""
    children, shapes = case["expected"]["parameters_of_each_child"], case["expected"]["child_output_shapes_batch2"]
    linears = [name for name in children if name in {"gate_fc", "control_v1", "query_weight", "key_weight"}]
    norms = [name for name in children if name in {"gate_norm", "bn_v1"}]
    width = {name: shape[-1] for name, shape in shapes if name in {*linears, *norms}}
    calls = {name: [called for called, _ in shapes].count(name) for name in linears}
    weights = {name: children[name] - width[name] * name.startswith(("gate", "control")) for name in linears}
    return {
        "parameters": sum(children[name] for name in (*linears, *norms)),
        "buffers": sum(2 * width[name] + 1 for name in norms),
        "linears": len(linears),
        "batch_norms": len(norms),
        "multiply_adds_per_image": sum(calls[name] * weights[name] for name in linears),
    }


@pytest.mark.parametrize("name", HERE)
def test_counts_are_those_of_the_official_definition(name: str) -> None:
    expected, extra = CASES[name]["expected"], extras(CASES[name])
    ours = counted(*arguments(CASES[name]))
    assert ours == {what: expected[what] - extra.get(what, 0) for what in ours}


@pytest.mark.parametrize("name", PLAIN)
def test_stages_end_where_those_of_the_official_definition_do(name: str) -> None:
    case = CASES[name]
    net = build(*arguments(case))[0]
    assert isinstance(net, StagedNet)
    output = net.eval().to("meta").tap(torch.empty(case["input_shape"], device="meta"), stage_maps=True)
    children = [shape for _, shape in case["expected"]["child_output_shapes_batch2"]]
    theirs = iter([shape if isinstance(shape[0], int) else shape[0] for shape in children])
    ours = [list(stage.shape) for stage in output.stages]
    assert all(shape in theirs for shape in ours), (ours, children)
    assert output.logits.shape[-1] == case["classes"]


def test_most_of_the_official_definitions_exist_here() -> None:
    assert len(HERE) >= 60
    assert {our_name(name) for name in HERE} <= set(NETS)
