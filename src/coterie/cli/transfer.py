"""`coterie transfer`: what the networks of a run know of another data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from coterie.cli.options import Plugins, Settings
from coterie.cli.screen import make_console

_Numbers = Annotated[tuple[int, ...], Parameter(negative=())]
_All = Annotated[bool, Parameter(name="--all", negative=())]


def transfer(
    run: Path,
    *settings: Settings,
    peer: _Numbers = (),
    every: _All = False,
    stage: _Numbers = (),
    limit: int = 0,
    seed: int | None = None,
    plugin: Plugins = (),
) -> int:
    """Probe the frozen leader of a run on another data set: logistic regression and nearest neighbours.

    The same network with fresh weights is probed beside it. Figures are added to RUN/transfer.json.

    Parameters
    ----------
    run
        Folder of the run.
    settings
        The data set, such as data.name=tiny_imagenet data.root=DIR; data.image_size=32 resizes its images.
    peer
        Peer to probe in place of the leader; may be repeated.
    every
        Probe all peers.
    stage
        Stage whose pooled map is probed in place of the embedding, 0 for the stem; may be repeated.
    limit
        Training images per class; 0 for all.
    seed
        Key of the limit and of the images held out to choose on; the run's by default.
    plugin
        Python file that registers a method, a network or a data set; may be repeated.
    """
    from coterie.cli.options import settings_from
    from coterie.core.errors import ConfigError
    from coterie.experiment import transfer_run

    if peer and every:
        raise ConfigError("--all probes every peer; leave --peer or --all out")
    transfer_run(
        run,
        settings_from(settings),
        peers="all" if every else peer or "leader",
        stages=stage,
        limit=limit,
        seed=seed,
        plugins=plugin,
        console=make_console(),
    )
    return 0
