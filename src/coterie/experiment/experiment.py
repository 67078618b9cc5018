"""One run from recipe to result: build, train or resume, score."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.config import Recipe
from coterie.core.draws import mix
from coterie.core.errors import ConfigError, CoterieError
from coterie.core.record import RunFolder
from coterie.data import Source, Split, evaluation_batches, open_data
from coterie.engine import Interrupt, Preempted, fit
from coterie.evaluation import classify, peer_logits
from coterie.experiment.build import Parts, build_cohort, build_method, pick_device, runtime
from coterie.experiment.session import Session, Setting
from coterie.experiment.teachers import build_teachers, cohort_facts, teacher_facts
from coterie.metrics import CohortScores
from coterie.nets.inputs import sight_for


class Experiment:
    """A recipe, the folder of its run, and the parts built from it.

    Args:
        recipe: what to do.
        folder: where the run is recorded.
        name: how tables call the run; the folder's name by default.
        nets: networks of the peers, in place of those the recipe names.
        source: an opened data set, in place of the one the recipe names.
        console: where to show progress; standard output by default.
        quiet: show nothing.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        folder: Path,
        name: str | None = None,
        nets: Sequence[nn.Module] | None = None,
        source: Source | None = None,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        self.recipe = recipe
        self.folder = RunFolder(folder)
        self.name = name or self.folder.path.name
        self.nets = nets
        self.source = source
        self.console = console or Console(file=sys.stdout)
        self.quiet = quiet

    def build(self) -> Parts:
        """Open the data and build cohort and method on their device; what can be wrong is found here."""
        recipe = self.recipe
        device = pick_device(recipe.train.device)
        data = open_data(recipe.data, recipe.seed, self.source)
        sight = sight_for(recipe.net.input, data.normalisation.mean, data.normalisation.std)
        channels, size = sight.shape(data.train.channels, data.train.image_size)
        cohort = build_cohort(recipe, data, (channels, size, size), self.nets)
        teachers = build_teachers(recipe, data, view=cohort.leader)
        method = build_method(
            recipe,
            cohort,
            data,
            peers=cohort_facts(cohort, teachers, (channels, size, size)),
            teachers=teacher_facts(teachers, data),
        ).to(device)
        teachers.stage_maps = method.requirements().stage_maps
        layout = torch.channels_last if recipe.train.channels_last else torch.preserve_format
        cohort.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        teachers.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        return Parts(data, cohort, method, device, teachers, sight.to(device))

    def train(self, *, resume: bool = False, fresh: bool = False) -> dict[str, Any]:
        """Train to the last epoch, then open the test set and score leader, peers and ensemble on it.

        Args:
            resume: go on from the newest sound checkpoint of the folder.
            fresh: begin again in the folder of a run, whose checkpoints, log and result are renamed first.

        Returns:
            What `result.json` holds.

        Raises:
            CoterieError: bad input, a run that cannot be continued, a loss that is not finite, or a polite stop.
        """
        with ExitStack() as stack:
            stack.enter_context(self.folder.create().lock())
            interrupt = stack.enter_context(Interrupt())
            stack.enter_context(runtime(self.recipe.train, mix(self.recipe.seed, "globals")))
            parts = self._built()
            setting = Setting(
                recipe=self.recipe,
                name=self.name,
                folder=self.folder,
                parts=parts,
                score=lambda split: self.score(parts, split),
                held_out=lambda: self.held_out(parts),
                console=self.console,
                quiet=self.quiet,
            )
            session = stack.enter_context(Session(setting, interrupt))
            (session.start_over if fresh else session.resume if resume else session.start)()
            return _run(session)

    def _built(self) -> Parts:
        try:
            return self.build()
        except CoterieError:
            self.folder.remove_if_unused()
            raise

    def score(self, parts: Parts, split: Split) -> CohortScores:
        """Score the cohort as it stands on a split."""
        return classify(parts.cohort, parts.method, self._batches(parts, split))

    def held_out(self, parts: Parts) -> Iterator[tuple[Sequence[Tensor], Tensor]]:
        """Run the cohort as it stands on the validation split: logits of the peers and labels, batch by batch.

        Raises:
            ConfigError: nothing is held out.
        """
        split = parts.data.validation
        if split is None:
            raise ConfigError(
                f"{self.recipe.method} learns from held-out images; set data.validation, 0.1 for instance"
            )
        return iter(peer_logits(parts.cohort, self._batches(parts, split)))

    def _batches(self, parts: Parts, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        batches = evaluation_batches(
            split,
            batch_size=max(self.recipe.data.batch_size, 256 if split.image_size <= 64 else 1),
            normalisation=parts.data.normalisation,
            device=parts.device,
            workers=self.recipe.data.workers,
            channels_last=self.recipe.train.channels_last,
        )
        return ((parts.sight(images), labels) for images, labels in batches)


def _run(session: Session) -> dict[str, Any]:
    try:
        fit(session.run)
        result = session.finish()
    except Preempted as error:
        message = f"{error}; go on with: coterie train --resume {session.setting.folder.path}"
        session.record("preempted", error.exit_code, message)
        raise Preempted(message) from None
    except Exception as error:
        session.record("failed", getattr(error, "exit_code", 1), str(error))
        raise
    session.record("done", 0)
    return result
