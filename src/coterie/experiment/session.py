"""A run while it lives: loop, log, display, validation, checkpoints, and the result at its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from rich.console import Console
from torch import Tensor, nn

from coterie.config import Recipe, to_toml
from coterie.core.draws import mix
from coterie.core.environment import describe_environment, exactness_lost
from coterie.core.errors import ConfigError
from coterie.core.files import JsonValue, RecordWarning
from coterie.core.memory_use import peak_bytes
from coterie.core.record import MetricsLog, RunFolder, State, Status, read_metrics
from coterie.core.world import ALONE, inside
from coterie.data import Split, ViewPlan, make_loader
from coterie.engine import (
    Diagnostics,
    Display,
    Interrupt,
    MeetingLoader,
    Meters,
    Objective,
    Precision,
    Pulse,
    Run,
    Snapshot,
    Stepper,
    Together,
    Watcher,
    digest,
    make_optimizer,
    restore,
    restore_generators,
    restore_place,
    save_to,
)
from coterie.engine.mesh import hand_out_peers
from coterie.engine.sharding import shard
from coterie.engine.snapshot import as_count, as_mapping
from coterie.experiment.best import load_best, restore_scorable, scorable, scores_equal
from coterie.experiment.build import Parts, images_per_batch, views_for
from coterie.experiment.changes import check_unchanged
from coterie.experiment.elsewhere import uploads_for
from coterie.experiment.exchanging import exchange_for, partners_for
from coterie.experiment.launched import launch_facts
from coterie.experiment.phases import Phase, adopt_rest, epoch_of, peers_in
from coterie.experiment.running import keeper_for, settle_execution, step_for, store_for
from coterie.experiment.teachers import digest_of
from coterie.experiment.tensorboard import TensorBoard
from coterie.experiment.validation import Validation
from coterie.metrics import CohortScores, Measured

Row = dict[str, Any]
_MEASURED = 2_000  # images at most that teachers are measured on


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a session is given.

    Attributes:
        recipe: what to do.
        name: how tables call the run.
        folder: where the run is recorded; locked by the caller.
        parts: data, cohort and method, built.
        phase: the epochs in which the cohort is this one.
        score: scores a cohort as it stands on a split.
        score_teachers: the top-1 accuracy of each teacher on a split, in per cent.
        held_out: the peers' logits and the labels of the validation split, batch by batch.
        build: builds the parts for other peers.
        console: where to show progress.
        quiet: show nothing.
        together: the processes that train together.
    """

    recipe: Recipe
    name: str
    folder: RunFolder
    parts: Parts
    phase: Phase
    score: Callable[[Parts, Split], CohortScores[Measured]]
    score_teachers: Callable[[Parts, Split], list[float]]
    held_out: Callable[[], Iterable[tuple[Sequence[Tensor], Tensor]]]
    build: Callable[[Sequence[int]], Parts]
    console: Console
    quiet: bool
    together: Together


class Session:
    """Holds a run together from its first step, or its last checkpoint, to its result.

    Args:
        setting: what the session is given.
        interrupt: the flag that signals raise.
    """

    def __init__(self, setting: Setting, interrupt: Interrupt) -> None:
        self.setting = setting
        recipe, folder = setting.recipe, setting.folder
        self.log = MetricsLog(folder.metrics, writes=folder.writes)
        self.timing = MetricsLog(folder.timing, writes=folder.writes)
        self.display = Display(recipe.epochs, setting.console, quiet=setting.quiet or not folder.writes)
        self.board = TensorBoard(folder.path / "tensorboard", writes=folder.writes)
        self.meters = Meters(every=recipe.train.log_every, emit=self._emit, emit_timing=self._emit_timing)
        self.store = store_for(folder, setting.together, recipe.train.keep, recipe.train.keep_every)
        self.keeper = keeper_for(
            setting.together,
            store=self.store,
            meters=self.meters,
            log=self.log,
            every=recipe.train.checkpoint_every,
            facts=_facts(setting),
            background=recipe.train.background_saves,
        )
        self.keeper.on_saved = self._on_saved
        self.uploads = uploads_for(recipe, folder, self.store)
        self.saved = 0
        self.keeper.extra["peers"] = list(setting.parts.peers)
        self.validation = self._make_validation()
        self.run = self._make_run(interrupt)
        self.exchange = exchange_for(
            recipe, setting.parts, self.run, emit=self._emit, keep=self._keep_counts, together=setting.together
        )

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(self.display)
        self._stack.enter_context(self.board)
        self._stack.callback(self.run.loader.close)
        self._stack.callback(self._finish_saving)
        if self.exchange is not None:
            self._stack.callback(self.exchange.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Write recipe and environment of a new run.

        Raises:
            ConfigError: the folder holds a run already.
        """
        folder = self.setting.folder
        self._check_unused()
        self.log.truncate(0)
        self.timing.truncate(0)
        folder.write_environment(self.setting.name, **launch_facts())
        folder.write_recipe(to_toml(self.setting.recipe))
        self.record("running")
        if not self.is_last:
            self._emit({"kind": "cohort", "epoch": 0, "step": 0, "peers": list(self.setting.parts.peers)})
        self._settle(begun=False)
        self._measure_teachers()
        if self.exchange is not None:
            self.exchange.begin(self.run, anew=True)

    def _check_unused(self) -> None:
        folder = self.setting.folder
        if folder.writes and (self.store.steps() or folder.result.exists()):
            raise ConfigError(
                f"{folder.path} holds a run already; go on with --resume {folder.path} or give another --out"
            )

    def start_over(self) -> None:
        """Begin again in the folder of a run; checkpoints, log and result of before are renamed, not deleted."""
        self.store.set_all_aside()
        self.setting.folder.set_aside()
        self.start()

    def resume(self) -> None:
        """Go on from the newest sound checkpoint; without any, from the beginning.

        Raises:
            CheckpointError: all checkpoints are damaged, or recipe or data are not those of the run.
        """
        found = self.store.load_newest()
        if found is None:
            self._say("no checkpoint yet: starting from the beginning")
            self.start()
            return
        step, snapshot = found
        check_unchanged(as_mapping(snapshot.value("facts")), self.keeper.facts)
        before, peers = peers_in(snapshot, self.setting.recipe), self.setting.parts.peers
        if before == peers:
            restore(self.run, self.meters, snapshot, self.setting.parts.device)
        else:
            adopt_rest(self.run, peers, snapshot, before)
            restore_place(self.run, snapshot)
        restore_generators(snapshot, self.setting.together.world.rank, self.setting.recipe.seed)
        self._restore_best(snapshot.values.get("best"))
        self.log.truncate(as_count(snapshot.value("log_bytes")))
        self.timing.truncate(self.timing.offset())  # only a row that lost its end goes
        self.record("running")
        self._settle(begun=before == peers)
        if self.exchange is not None:
            self.exchange.counts.load(as_mapping(snapshot.values.get("exchange")))
            self.exchange.begin(self.run, anew=False)
        if before == peers:
            self._warn_if_inexact()
            self._say(f"resumed after {step} batches from {self.store.path_of(step)}")
        else:
            self._emit({"kind": "cohort", "epoch": self.run.clock.epoch, "step": step, "peers": list(peers)})
            self._say(f"epoch {self.run.clock.epoch + 1}: peers {list(before)} become {list(peers)}")

    def _restore_best(self, best: object) -> None:
        if self.validation is not None and isinstance(best, float):
            self.validation.best = self.keeper.extra["best"] = best

    @property
    def is_last(self) -> bool:
        """Whether the run ends with this cohort."""
        return self.setting.phase.end == self.setting.recipe.epochs

    def record(self, state: State, exit_code: int | None = None, message: str = "") -> None:
        """Write `status.json`; at the end of the run once all that is being saved is on disk."""
        if state != "running":
            self._finish_saving()
        self._write_status(
            Status(
                state=state,
                step=self.run.batches,
                epoch=self.run.clock.epoch,
                exit_code=exit_code,
                message=message,
                saved=self.saved,
            )
        )

    def _write_status(self, status: Status) -> None:
        if self.uploads is not None:
            status = replace(status, mirrored=self.uploads.mirrored, mirror_failures=self.uploads.failures)
        self.setting.folder.write_status(status)

    def _on_saved(self, step: int, snapshot: Snapshot) -> None:
        self.saved = step
        self._write_status(Status(state="running", step=step, epoch=epoch_of(snapshot), saved=step))
        if self.uploads is not None:
            self.uploads.offer(step)

    def _finish_saving(self) -> None:
        self.keeper.close()
        if self.uploads is not None:
            if self.saved:
                self.uploads.offer(self.saved)  # with the logs and the result as they are now
            self.uploads.close()
            self.store.retire(self.saved)

    def finish(self) -> Row:
        """Open the test set, score the last epoch and, marked as such, the best on validation; write `result.json`.

        Returns:
            What was written.
        """
        parts, recipe, folder = self.setting.parts, self.setting.recipe, self.setting.folder
        told = {} if self.exchange is None else {"exchange": self.exchange.finish(self.run, recipe.exchange.timeout)}
        parts.cohort.keep_all(parts.device)  # their weights came with the last checkpoint
        if not folder.writes:
            return {}  # rank 0 tells what it has found
        with inside(ALONE):
            last = self.store.load(self.run.batches)
            if recipe.train.shard:
                parts = self.setting.build(parts.peers)
                restore_scorable(parts, last)
            return self._finish(parts, last, told)

    def _finish(self, parts: Parts, last: Snapshot, told: Row) -> Row:
        recipe, folder = self.setting.recipe, self.setting.folder
        test = parts.data.test()
        result: Row = {
            "recipe": self.setting.name,
            "method": recipe.method,
            "seed": recipe.seed,
            "peers": len(parts.cohort),
            "leader": parts.cohort.leader,
            "epochs": recipe.epochs,
            "train_images": len(parts.data.train.labels),
            "seconds": sum(float(str(row["seconds"])) for row in read_metrics(folder.timing)),
            "digest": digest(_without_facts(last)),
            **told,
            "last": {"epoch": recipe.epochs, "test": self.setting.score(parts, test).as_dict()},
        }
        if parts.data.validation is not None:
            result["last"]["validation"] = self.setting.score(parts, parts.data.validation).as_dict()
            result |= self._best_result(parts, test, last, result["last"]["test"])
        folder.write_result(result)
        return result

    def _best_result(self, parts: Parts, test: Split, last: Snapshot, scores: Row) -> Row:
        best = load_best(self.setting.folder.best)
        if best is None:
            return {}
        same = scores if scores_equal(best, last) else self._score_best(parts, test, best)
        kept = {key: best.value(key) for key in ("epoch", "validation")}
        return {"best_on_validation": {**kept, "test": same}}

    def _score_best(self, parts: Parts, test: Split, best: Snapshot) -> Row:
        peers = peers_in(best, self.setting.recipe)
        then = parts if peers == parts.peers else self.setting.build(peers)
        restore_scorable(then, best)
        scores = self.setting.score(then, test).as_dict()
        restore_scorable(parts, self.store.load(self.run.batches))
        return scores

    def _measure_teachers(self) -> None:
        parts = self.setting.parts
        if not len(parts.teachers):
            return
        held_out = parts.data.validation
        split, where = (parts.data.train, "training") if held_out is None else (held_out, "held-out")
        split = split.select(torch.arange(min(len(split.labels), _MEASURED)))
        for number, (net, top1) in enumerate(
            zip(parts.teachers, self.setting.score_teachers(parts, split), strict=True)
        ):
            if net.num_classes != parts.data.num_classes:
                self._say(f"teacher {number}: of {net.num_classes} other classes, so its accuracy here is not measured")
                continue
            self._emit({"kind": "teacher", "epoch": 0, "step": 0, "teacher": number, "images": where, "top1": top1})
            self._say(f"teacher {number}: {top1:.2f} % of {len(split.labels):,} {where} images")
            _warn_if_by_chance(number, top1, parts.data.num_classes)

    def _settle(self, *, begun: bool) -> None:
        setting, world = self.setting, self.setting.together.world
        if not world.alone:
            images = images_per_batch(setting.recipe, setting.parts.method)
            peers = f"{len(setting.parts.cohort.here)} peers on " if world.spread else ""
            share = f"{peers}{images // world.data.size} of the {images} images of a batch"
            self._say(f"{world.size} processes train together, each {'' if peers else 'on '}{share}")
        self._say(
            settle_execution(setting.folder, recipe=setting.recipe, parts=setting.parts, run=self.run, begun=begun)
        )

    def _say(self, line: str) -> None:
        if line and not self.setting.quiet and self.setting.folder.writes:
            self.setting.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _warn_if_inexact(self) -> None:
        before = self.setting.folder.read_environment()
        lost = exactness_lost(before, describe_environment())
        if before and lost:
            message = f"the run was begun elsewhere ({', '.join(lost)}); its result may differ in the last bits"
            warnings.warn(message, RecordWarning, stacklevel=2)

    def _make_run(self, interrupt: Interrupt) -> Run:
        recipe, parts = self.setting.recipe, self.setting.parts
        split = parts.data.train
        plan = ViewPlan.of(
            recipe.data,
            parts.data.normalisation,
            seed=mix(recipe.seed, "augmentation"),
            views=views_for(recipe, parts.method),
            channels_last=recipe.train.channels_last,
        )
        loader = make_loader(split, order=parts.order, plan=plan, device=parts.device, workers=recipe.data.workers)
        objective = self._make_objective()
        precision = Precision(recipe.train.precision, parts.device)
        if recipe.train.shard:
            shard(parts.cohort, self.setting.together.world)
        stepper = self._make_stepper(objective.trainable(), precision, loader.batches_per_epoch)
        held_out = self.setting.held_out if parts.method.requirements().held_out else tuple
        run = Run(
            objective, stepper, loader, precision, self.setting.phase.end, self.keeper, self._watchers(), interrupt
        )
        run.held_out = held_out
        run.step = step_for(recipe, parts, self.setting.together)
        if not self.setting.together.world.alone:
            run.loader, run.interrupt = MeetingLoader(loader, self.setting.together), self.setting.together
        return run

    def _make_objective(self) -> Objective:
        recipe, parts = self.setting.recipe, self.setting.parts
        return Objective(
            parts.cohort,
            parts.method,
            teachers=parts.teachers,
            sight=parts.sight,
            partners=partners_for(recipe, parts),
            compiled=recipe.train.compile == "default",
        )

    def _make_stepper(self, learnt: Mapping[str, nn.Parameter], precision: Precision, batches: int) -> Stepper:
        recipe = self.setting.recipe
        return Stepper(
            make_optimizer(learnt.values(), recipe.optim, recorded=recipe.train.compile == "graph"),
            recipe.optim,
            precision,
            batches_per_epoch=batches,
            epochs=recipe.epochs,
            common=sum(name.startswith("method.") for name in learnt),
        )

    def _watchers(self) -> list[Watcher]:
        pulse, diagnostics = Pulse(self.setting.together), Diagnostics(self._emit)
        found: tuple[Watcher | None, ...] = (
            self.meters,
            self.validation,
            self.uploads,
            diagnostics,
            self.display,
            pulse,
        )
        return list(filter(None, found))

    def _make_validation(self) -> Validation | None:
        split = self.setting.parts.data.validation
        if split is None:
            return None
        return Validation(
            score=lambda: self._validate(split),
            every=self.setting.recipe.train.evaluate_every,
            emit=self._emit,
            on_best=self._keep_best,
        )

    def _validate(self, split: Split) -> CohortScores[Measured]:
        with self.setting.together.phase("validation", self.run.batches):
            return self.setting.score(self.setting.parts, split)

    def _keep_best(self, row: Row) -> None:
        self.keeper.extra["best"] = row["leader"]["top1"]
        peers: JsonValue = list(self.setting.parts.peers)
        values = {
            "epoch": row["epoch"] + 1,
            "peers": peers,
            "validation": {key: row[key] for key in ("leader", "peers", "ensemble")},
        }
        hand_out_peers(self.run.objective, self.setting.together.world)
        state = Snapshot(tensors=scorable(self.setting.parts), values=values)
        if self.setting.folder.writes:
            self._save_best(row["step"], state)

    def _save_best(self, step: int, state: Snapshot) -> None:
        save_to(self.setting.folder.best, step, state)

    def _keep_counts(self, counts: Row) -> None:
        self.keeper.extra["exchange"] = counts

    def _emit(self, row: Row) -> None:
        self.log.append(row)
        self.display.on_row(row)
        self.board.on_row(row)

    def _emit_timing(self, row: Row) -> None:
        row = {**row, "peak_mib": peak_bytes(self.setting.parts.device) / 2**20}
        self.timing.append(row)
        self.display.on_timing(row)


def _facts(setting: Setting) -> dict[str, JsonValue]:
    """What a continued run must find unchanged."""
    parts = setting.parts
    teachers = {"teachers": digest_of(parts.teachers)} if len(parts.teachers) else {}
    return {"recipe": to_toml(setting.recipe), "data": parts.data.train.fingerprint(), **teachers}


def _without_facts(snapshot: Snapshot) -> Snapshot:
    """What training has made: settings that may differ between equal runs, such as `data.workers`, are left out.

    So are generators of other ranks, the counters of an exchange, and the length of a log that holds those: they tell
    what happened on the way.
    """
    left_out = {"facts", "exchange", *(["log_bytes"] if "exchange" in snapshot.values else [])}
    tensors = {stem: section for stem, section in snapshot.tensors.items() if not _of_a_rank(stem)}
    values = {key: value for key, value in snapshot.values.items() if key not in left_out and not _of_a_rank(key)}
    return replace(snapshot, tensors=tensors, values=values)


def _of_a_rank(name: str) -> bool:
    """Whether a part of a checkpoint is of another rank's generators: `rng1`, `rng2`, ..."""
    return name.startswith("rng") and name != "rng"


def _warn_if_by_chance(teacher: int, top1: float, num_classes: int) -> None:
    chance = 100 / num_classes
    if top1 < chance + (100 - chance) / 20:
        message = f"teacher {teacher} is hardly better than chance; are classes and input those it was trained on?"
        warnings.warn(message, RecordWarning, stacklevel=3)
