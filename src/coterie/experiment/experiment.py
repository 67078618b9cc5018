"""One run from recipe to result: build, train or resume, score."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.config import FewshotConfig, Recipe
from coterie.core.draws import mix
from coterie.core.errors import ConfigError, CoterieError, one_line
from coterie.core.record import RunFolder
from coterie.core.world import ALONE, world
from coterie.data import Opened, Source, Split, evaluation_batches, open_data
from coterie.engine import Interrupt, Preempted, Snapshot, Together, check_spreadable, fit, joined
from coterie.engine.mesh import check_divisible, divide
from coterie.engine.sharding import check_shardable
from coterie.evaluation import classify, draw_episodes, peer_embeddings, peer_logits, score_episodes
from coterie.experiment.build import (
    Parts,
    build_cohort,
    build_method,
    images_per_batch,
    net_names,
    order_for,
    pick_device,
    runtime,
    views_for,
)
from coterie.experiment.elsewhere import prepare_mirror
from coterie.experiment.exchanging import check_exchange, check_place
from coterie.experiment.launched import was_begun_by_this_launch
from coterie.experiment.new_classes import check_scores
from coterie.experiment.phases import Phase, adopt_peers, epoch_of, peers_in, phase_at, phases_of
from coterie.experiment.running import heartbeat_for, prepare_running, store_for
from coterie.experiment.session import Row, Session, Setting
from coterie.experiment.teacher_cache import cache_size, cached_outputs, check_taught, on_device
from coterie.experiment.teachers import build_teachers, cohort_facts, teacher_facts, teacher_scores
from coterie.metrics import CohortScores, Measured
from coterie.nets.inputs import sight_for

Begin: TypeAlias = Literal["start", "start_over", "resume"]


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

    Attributes:
        columns: what new classes will be scored by after training, besides the recipe's `fewshot`; checked before it.
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
        self._learning = _learning_in(nets or ())
        self.source = source
        self.console = console or Console(file=sys.stdout)
        self.quiet = quiet
        self.columns: tuple[FewshotConfig, ...] = ()

    def build(self, peers: Sequence[int] = (), given: Snapshot | None = None) -> Parts:
        """Open the data and build cohort and method on their device; what can be wrong is found here.

        Args:
            peers: who takes part, by number in the recipe; those of the first phase when empty.
            given: the end of a phase with other peers; those that stay keep their weights.

        Raises:
            CoterieError: networks, data and method do not fit each other.
        """
        recipe = self.recipe
        phases = phases_of(recipe)
        peers = tuple(peers) or phases[0].peers
        device = pick_device(recipe.train.device)
        data = open_data(recipe.data, recipe.seed, self.source)
        sight = sight_for(recipe.net.input, data.normalisation.mean, data.normalisation.std)
        channels, size = sight.shape(data.train.channels, data.train.image_size)
        cohort = self._cohort(data, (channels, size, size), peers, given)
        teachers = build_teachers(recipe, data, view=cohort.leader)
        method = build_method(
            recipe,
            cohort,
            data,
            phase=_number_of(peers, phases),
            peers=cohort_facts(cohort, teachers, (channels, size, size)),
            teachers=teacher_facts(teachers, data),
        ).to(device)
        needs = method.requirements()
        check_divisible(recipe.method, needs, cohort, world())
        check_shardable(recipe.train, recipe.cohort, cohort, method, given=self.nets is not None, world=world())
        teachers.stage_maps, teachers.preactivations = needs.stage_maps, needs.preactivations
        layout = torch.channels_last if recipe.train.channels_last else torch.preserve_format
        cohort.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        teachers.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        names = tuple(net_names(recipe)[m] for m in peers)
        check_taught(recipe, needs, len(teachers))
        check_exchange(recipe, needs)
        prepare_running(
            recipe, cohort, method, torch.zeros(views_for(recipe, method), 2, channels, size, size).to(device)
        )
        order = order_for(recipe, method, data)
        return Parts(data, cohort, method, order, device, teachers, sight.to(device), peers, names)

    def _cohort(
        self, data: Opened, shape: tuple[int, int, int], peers: Sequence[int], given: Snapshot | None
    ) -> Cohort:
        for parameter in self._learning:
            parameter.requires_grad_(True)  # a network that lived elsewhere may live here now
        cohort = build_cohort(self.recipe, data, shape, nets=self.nets, peers=peers)
        divide(cohort, world())
        if given is not None:
            adopt_peers(cohort, peers, given, peers_in(given, self.recipe))
        return cohort

    def build_to_train(self, peers: Sequence[int] = (), given: Snapshot | None = None) -> Parts:
        """Build as `build` does, and check that the run can be scored when it is trained.

        Raises:
            CoterieError: as `build`, or classes of validation or test are too few for the episodes of the scores.
        """
        parts = self.build(peers, given)
        check_scores(self.recipe, parts.method, parts.data, self.columns)
        check_place(self.recipe)
        return parts

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
        interrupt = Interrupt()
        begin: Begin = "start_over" if fresh else "resume" if resume else "start"
        with ExitStack() as stack:
            together = stack.enter_context(joined(self.recipe.train, interrupt))
            self.folder.writes = together.world.writes
            stack.enter_context(together.contact())
            with together.checked("opening the folder"):
                stack.enter_context(self.folder.create().lock())
                together.heart = heartbeat_for(self.folder, together)
            begin = cast("Begin", together.tell("resume" if was_begun_by_this_launch(self.folder) else begin))
            with together.checked("opening the mirror"):
                prepare_mirror(self.recipe, self.folder, begin)
            stack.enter_context(interrupt)
            stack.enter_context(runtime(self.recipe.train, _generators(self.recipe, together)))
            result = None
            while result is None:
                result = self._train_phase(begin, interrupt, together)
                begin = "resume"
            return together.tell_json(result)

    def _train_phase(self, begin: Begin, interrupt: Interrupt, together: Together) -> Row | None:
        """Train as long as the cohort stays the same; what the run gives when that is its end."""
        found = store_for(self.folder, together).load_newest() if begin == "resume" else None
        snapshot = None if found is None else found[1]
        phase = phase_at(self.recipe, 0 if snapshot is None else epoch_of(snapshot))
        with together.checked("setup"):
            parts = self._built(phase, snapshot)
        with together.in_turn():
            self._fill_cache(parts)
        with self.session(parts, phase, interrupt, together) as session:
            with together.checked("start"):
                getattr(session, begin)()
            return _run(session)

    def session(self, parts: Parts, phase: Phase, interrupt: Interrupt, together: Together | None = None) -> Session:
        """Make the session that trains a cohort through its phase; it writes nothing before it is told to start.

        Args:
            parts: built for the phase.
            phase: the epochs in which the cohort stays the same.
            interrupt: the flag that signals raise.
            together: the processes that train together; this one alone when None.
        """
        together = together or Together(ALONE, interrupt)
        setting = Setting(
            recipe=self.recipe,
            name=self.name,
            folder=self.folder,
            parts=parts,
            phase=phase,
            score=self.score,
            score_teachers=self.score_teachers,
            held_out=lambda: self.held_out(parts),
            build=self.build,
            console=self.console,
            quiet=self.quiet or not together.world.writes,
            together=together,
        )
        return Session(setting, interrupt)

    def _fill_cache(self, parts: Parts) -> None:
        teachers, folder, images = parts.teachers, self.recipe.teacher.cache, len(parts.data.train.labels)
        if not (folder and len(teachers)):
            return
        if not self.quiet and self.folder.writes:
            line = f"teachers: scores and embeddings of {images:,} images, {cache_size(teachers, images):.1f} MiB"
            self.console.print(f"{line}, in {folder}", highlight=False, soft_wrap=True, markup=False)
        batches = self._whole_images(parts, parts.data.train)
        teachers.cached = on_device(cached_outputs(teachers, parts.data, batches, Path(folder)), parts.device)

    def _built(self, phase: Phase, found: Snapshot | None) -> Parts:
        try:
            if found is None:
                for later in reversed(phases_of(self.recipe)[1:]):
                    self.build_to_train(later.peers)  # what is wrong with a later cohort is found before the first step
            changes = found is not None and peers_in(found, self.recipe) != phase.peers
            parts = self.build_to_train(phase.peers, found if changes else None)
            check_spreadable(self.recipe.data, self.recipe.train, images_per_batch(self.recipe, parts.method), world())
            return parts
        except CoterieError:
            self.folder.remove_if_unused()
            raise

    def score(self, parts: Parts, split: Split) -> CohortScores[Measured]:
        """Score the cohort as it stands on a split: by episodes where its classes are new, else as a classifier."""
        if parts.data.unseen:
            config = self.recipe.fewshot
            embeddings, labels = self.embeddings(parts, split)
            rows = draw_episodes(labels, config, "the split")
            leader, head = parts.cohort.leader, head_of(parts, config)
            return score_episodes(embeddings, rows, shots=config.shots, head=head, leader=leader).scores()
        return classify(parts.cohort, parts.method, self._batches(parts, split))

    def embeddings(self, parts: Parts, split: Split) -> tuple[list[Tensor], Tensor]:
        """Embed a split by every peer as it stands: M times `[N, D]`, and the labels `[N]`."""
        return peer_embeddings(parts.cohort, self._batches(parts, split))

    def score_teachers(self, parts: Parts, split: Split) -> list[float]:
        """Measure the top-1 accuracy of each teacher on a split, in per cent."""
        return teacher_scores(parts.teachers, self._whole_images(parts, split))

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
        return ((parts.sight(images), labels) for images, labels in self._whole_images(parts, split))

    def _whole_images(self, parts: Parts, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(
            split,
            batch_size=max(self.recipe.data.batch_size, 256 if split.image_size <= 64 else 1),
            normalisation=parts.data.normalisation,
            device=parts.device,
            workers=self.recipe.data.workers,
            channels_last=self.recipe.train.channels_last,
        )


def _generators(recipe: Recipe, together: Together) -> int:
    """Seed of this process's global generators; each rank has its own."""
    rank = together.world.rank
    return mix(recipe.seed, "globals", rank) if rank else mix(recipe.seed, "globals")


def _learning_in(nets: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for net in nets for parameter in net.parameters() if parameter.requires_grad]


def _number_of(peers: tuple[int, ...], phases: Sequence[Phase]) -> int:
    return next((number for number, phase in enumerate(phases) if phase.peers == peers), 0)


def head_of(parts: Parts, config: FewshotConfig) -> str:
    """Name how embeddings of new classes are read: as the recipe says, or as the method trains them."""
    episode = parts.method.requirements().episode
    trained = "euclidean" if episode is None else episode.head
    return trained if config.head == "auto" else config.head


def _announce(session: Session, error: Exception) -> Exception:
    """Let other ranks and the record know how a run has failed; what to raise."""
    ended = session.setting.together.announce(session.run.batches, error)
    said = str(ended) if isinstance(ended, CoterieError) else one_line(ended)
    session.record("failed", getattr(ended, "exit_code", 1), said)
    return ended


def _run(session: Session) -> Row | None:
    try:
        with session.setting.together.contact():
            fit(session.run)
            if not session.is_last:
                return None
            result = session.finish()
    except Preempted as error:
        message = f"{error}; go on with: coterie train --resume {session.setting.folder.path}"
        session.record("preempted", error.exit_code, message)
        session.setting.together.tell()  # a launcher ends the first process when another one has gone
        raise Preempted(message) from None
    except Exception as error:
        ended = _announce(session, error)
        if ended is error:
            raise
        raise ended from error
    session.record("done", 0)
    return result
