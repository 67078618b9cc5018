"""Peers that outgrow a device: weights, gradients and optimiser state cut into parts over the ranks of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING, cast

from torch import nn

from coterie.cohort import Cohort
from coterie.cohort.ema import copies_among
from coterie.config import CohortConfig, TrainConfig
from coterie.core.errors import ConfigError
from coterie.core.method import Method
from coterie.core.types import PeerOutput
from coterie.core.world import World
from coterie.nets import StagedNet

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_shardable(
    train: TrainConfig, config: CohortConfig, cohort: Cohort, method: Method, *, given: bool, world: World
) -> None:
    """Refuse what cannot be trained in parts.

    Args:
        train: asks for it.
        config: how the cohort is run.
        cohort: divided.
        method: attached to it.
        given: whether the networks are a program's own, which must come back as they came.
        world: the ranks.

    Raises:
        ConfigError: one line that says what is in the way.
    """
    if not train.shard or world.alone:
        return
    hurdles = {
        "networks that a program gave; name them in the recipe": given,
        "peers that share stages": bool(cohort.copies),
        f"cohort.execution={config.execution}": config.execution in ("grouped", "streams"),
        f"train.precision={train.precision}, whose gradients are scaled": train.precision == "float16",
        **_hurdles_of(method),
    }
    found = next(compress(hurdles, hurdles.values()), "")
    if found:
        raise ConfigError(f"train.shard cuts the weights of peers into parts and finds {found}; set train.shard=false")


def _hurdles_of(method: Method) -> dict[str, bool]:
    needs, copies = method.requirements(), copies_among(method.memories.values())
    return {
        "a method that reads maps before activations": needs.preactivations,
        "a method that keeps copies of the peers or steps through their weights": bool(copies or needs.outer_every),
    }


def shard(cohort: Cohort, world: World) -> None:
    """Cut the peers that live here into parts, stage by stage; each forward pass puts a stage together and drops it.

    Args:
        cohort: on its device; its parameters are others afterwards, so optimisers are made later.
        world: the ranks.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # which take long to import

    _register_outputs()
    mesh = _data_mesh(world)
    for m in cohort.here:
        net = cohort.nets[m]
        for part in (*_stages(net), net):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)  # so that parameters are parts between passes
        register_fsdp_forward_method(net, "tap")


@cache
def _register_outputs() -> None:
    """Let torch find the tensors of outputs, whose backward pass needs the weights again; once in a process."""
    from torch.export import register_dataclass

    register_dataclass(PeerOutput)


def _data_mesh(world: World) -> DeviceMesh:
    assert world.mesh is not None and world.mesh.mesh_dim_names is not None
    return world.mesh[world.mesh.mesh_dim_names[1]]


def _stages(net: nn.Module) -> Sequence[nn.Module]:
    return cast("Sequence[nn.Module]", net.stages) if isinstance(net, StagedNet) else ()
