"""The loop that trains, and what it needs: steps, checkpoints, figures and the display."""

from coterie.engine.checkpoint import CheckpointStore, load_from, save_to
from coterie.engine.diagnostics import Diagnostics
from coterie.engine.display import Display
from coterie.engine.heartbeat import Heartbeat, Sign, read_signs
from coterie.engine.interrupt import Interrupt, Preempted, stop_with
from coterie.engine.joining import joined, leave
from coterie.engine.keeper import CheckpointKeeper
from coterie.engine.loop import Clock, Done, Keeper, Run, Step, Watcher, fit, take_step, train_epoch
from coterie.engine.meters import Meters
from coterie.engine.mirror import Mirror
from coterie.engine.objective import Objective, check_compiler
from coterie.engine.parallel import ParallelStep, check_spreadable
from coterie.engine.precision import Precision
from coterie.engine.recorded import CudaRecorder, RecordedStep, Recorder, check_recordable
from coterie.engine.remote import Remote
from coterie.engine.schedule import learning_rate
from coterie.engine.shared_store import SharedKeeper, SharedStore, restore_generators
from coterie.engine.snapshot import Snapshot, digest, peer_tensors, restore_peers
from coterie.engine.state import capture, restore, restore_place
from coterie.engine.stepper import Stepper, make_optimizer
from coterie.engine.together import MeetingLoader, Pulse, Together
from coterie.engine.uploads import Uploads

__all__ = [
    "CheckpointKeeper",
    "CheckpointStore",
    "Clock",
    "CudaRecorder",
    "Diagnostics",
    "Display",
    "Done",
    "Heartbeat",
    "Interrupt",
    "Keeper",
    "MeetingLoader",
    "Meters",
    "Mirror",
    "Objective",
    "ParallelStep",
    "Precision",
    "Preempted",
    "Pulse",
    "RecordedStep",
    "Recorder",
    "Remote",
    "Run",
    "SharedKeeper",
    "SharedStore",
    "Sign",
    "Snapshot",
    "Step",
    "Stepper",
    "Together",
    "Uploads",
    "Watcher",
    "capture",
    "check_compiler",
    "check_recordable",
    "check_spreadable",
    "digest",
    "fit",
    "joined",
    "learning_rate",
    "leave",
    "load_from",
    "make_optimizer",
    "peer_tensors",
    "read_signs",
    "restore",
    "restore_generators",
    "restore_peers",
    "restore_place",
    "save_to",
    "stop_with",
    "take_step",
    "train_epoch",
]
