"""The loop that trains, and what it needs: steps, checkpoints, figures and the display."""

from coterie.engine.checkpoint import CheckpointStore, load_from, save_to
from coterie.engine.diagnostics import Diagnostics
from coterie.engine.display import Display
from coterie.engine.interrupt import Interrupt, Preempted, stop_with
from coterie.engine.keeper import CheckpointKeeper
from coterie.engine.loop import Clock, Done, Keeper, Run, Step, Watcher, fit, take_step, train_epoch
from coterie.engine.meters import Meters
from coterie.engine.objective import Objective, check_compiler
from coterie.engine.precision import Precision
from coterie.engine.recorded import CudaRecorder, RecordedStep, Recorder, check_recordable
from coterie.engine.schedule import learning_rate
from coterie.engine.snapshot import Snapshot, digest, peer_tensors, restore_peers
from coterie.engine.state import capture, restore, restore_place
from coterie.engine.stepper import Stepper, make_optimizer

__all__ = [
    "CheckpointKeeper",
    "CheckpointStore",
    "Clock",
    "CudaRecorder",
    "Diagnostics",
    "Display",
    "Done",
    "Interrupt",
    "Keeper",
    "Meters",
    "Objective",
    "Precision",
    "Preempted",
    "RecordedStep",
    "Recorder",
    "Run",
    "Snapshot",
    "Step",
    "Stepper",
    "Watcher",
    "capture",
    "check_compiler",
    "check_recordable",
    "digest",
    "fit",
    "learning_rate",
    "load_from",
    "make_optimizer",
    "peer_tensors",
    "restore",
    "restore_peers",
    "restore_place",
    "save_to",
    "stop_with",
    "take_step",
    "train_epoch",
]
