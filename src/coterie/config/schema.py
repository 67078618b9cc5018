"""Every knob of a run and its default: frozen dataclasses, the only place where defaults are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coterie.core.method import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class NetConfig:
    """The network of every peer.

    Attributes:
        name: a registered network, see `coterie list nets`.
        input: what it sees of an image: all of it (`image`), its `luminance`, its `chrominance`, or `half` its size.
    """

    name: str = "resnet32"
    input: str = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortConfig:
    """Who learns together.

    Attributes:
        peers: number of peers M, all of them `net.name`.
        nets: names of the peers' networks when they differ; then `peers` and `net.name` are not used.
        shared: stages after the stem that all peers share; 0 for separate peers.
        tree: copies of each stage, first to last, in place of `shared`; `1, 2, 4` is a tree of four peers.
        leader: the peer that is kept; negative numbers count from the end.
        weights: where each peer's first weights come from: a safetensors file, a run (its leader) or `RUN#2` (its peer
            2); an empty text, or nothing, for fresh ones.
        frozen: peers that are not trained but teach, such as a teacher of offline distillation.
        joins: epoch before which each peer joins, in order of peers; nothing, or 0, for the first.
        leaves: epoch before which each peer leaves; nothing, or 0, for staying to the end.
        execution: how peers are run in training: `loop`, one after the other; `grouped`, alike peers as one network;
            `streams`, each on a CUDA stream of its own; `auto` measures on CUDA which is fastest, `loop` elsewhere.
    """

    peers: int = 4
    nets: tuple[str, ...] = ()
    shared: int = 0
    tree: tuple[int, ...] = ()
    leader: int = -1
    weights: tuple[str, ...] = ()
    frozen: tuple[int, ...] = ()
    joins: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()
    execution: Literal["auto", "loop", "grouped", "streams"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """Networks outside the cohort that are trained already, for methods that learn from teachers.

    Attributes:
        weights: where each teacher's weights come from: the folder of a run (its leader), `RUN#2` (its peer 2), a
            safetensors file, a state dict that torch has saved (tensors only, nothing in it is run), or a model of
            `timm/` or `torchvision/` with the weights that the package offers.
        nets: names of the teachers' networks, in the same order; may be left out for folders of runs.
        inputs: what each teacher sees of an image, as `net.input`; may be left out for folders of runs.
        cache: folder in which scores and embeddings of all training images are kept, so that teachers run once and not
            in every step; only where images are the same in every epoch. Nothing for no cache.
    """

    weights: tuple[str, ...] = ()
    nets: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    cache: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is learnt from.

    Attributes:
        name: a registered data set, see `coterie list data`.
        root: folder that holds the data set in its authors' layout.
        batch_size: images per batch B.
        validation: share of the training set held out, stratified and seeded, for every choice; 0 for none.
        limit: number of training images to keep, stratified and seeded; 0 for all.
        image_size: side in pixels that images of a folder are brought to; 0 for a data set's own size.
        augment: `crop` pads and crops, `resized_crop` cuts and scales as for ImageNet, `none` leaves images alone.
        padding: pixels added on each side before `crop`.
        flip: mirror half of the images.
        views: at least so many independent views of each image; a method that needs more gets more.
        workers: processes that decode images of folders; 0 decodes in the training process.
        memory_mb: folders that decode to at most this many MiB live in memory as one tensor.
        classes: number of classes of the `synthetic` set.
        samples: number of training images of the `synthetic` set.
    """

    name: str = "digits"
    root: str = "data"
    batch_size: int = 64
    validation: float = 0.1
    limit: int = 0
    image_size: int = 0
    augment: Literal["crop", "resized_crop", "none"] = "crop"
    padding: int = 4
    flip: bool = True
    views: int = 1
    workers: int = 2
    memory_mb: int = 512
    classes: int = 10
    samples: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How parameters are changed.

    Attributes:
        name: `sgd`, `adam` or `adamw`.
        lr: learning rate at its highest.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: applied to all parameters, as the papers' code does.
        schedule: `cosine` falls to zero, `step` multiplies by `gamma` at each milestone, `constant` stays,
            `one_cycle` rises over the first 30 % of all steps and falls to zero.
        per: whether the schedule moves once per `epoch` (as the papers' code) or per `step`.
        milestones: epochs after which `step` lowers the rate.
        every: epochs between two milestones of `step`, in place of `milestones`; 0 for those.
        gamma: factor of `step`.
        warmup_epochs: epochs of linear increase from zero before the schedule.
        clip: largest norm of the gradient; 0 for no clipping.
        accumulate: batches whose gradients are averaged for one step.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant", "one_cycle"] = "cosine"
    per: Literal["epoch", "step"] = "epoch"
    milestones: tuple[int, ...] = ()
    every: int = 0
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    clip: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the loop runs.

    Attributes:
        device: `auto` takes an accelerator when there is one; otherwise a torch device, such as `cpu` or `cuda:0`.
        precision: `float32`, or autocast to `bfloat16` or `float16` (with gradient scaling).
        channels_last: keep maps in channels-last order, faster on most machines.
        deterministic: use deterministic kernels only, so that an interrupted run can be continued to the bit.
        threads: threads of the CPU; 0 leaves torch's choice.
        log_every: batches between rows of `metrics.jsonl`, besides one at each epoch's end; 0 for that one only.
        checkpoint_every: batches between checkpoints; 0 for one per epoch.
        keep: checkpoints kept, newest first; at least 2.
        keep_every: batches between checkpoints that are kept for good besides; 0 for none.
        background_saves: write checkpoints in a thread while training goes on, from a copy of the state in memory.
        mirror: folder or URL, such as `s3://bucket/run`, where checkpoints are copied besides; nowhere when empty.
        evaluate_every: epochs between evaluations on the validation split.
        compile: `default` compiles the peers with `torch.compile`; `graph` records a whole step as a CUDA graph and
            replays it; `none` does neither.
        sync_batch_norm: where several processes train together, let batch norm see the images of all of them, so that
            they give what one process gives; otherwise those of its own, and running statistics are averaged.
        timeout: seconds that one of several processes waits for the others.
        peer_ranks: processes that the peers are split over, as many on each; those left share the images of a batch.
            With 1 every process holds all peers. Peers in different processes tell each other what they say, no more.
        shard: cut weights, gradients and optimiser state of each peer into parts over the processes that share its
            batches, for peers that outgrow a device.
    """

    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    deterministic: bool = True
    threads: int = 0
    log_every: int = 50
    checkpoint_every: int = 0
    keep: int = 2
    keep_every: int = 0
    background_saves: bool = True
    mirror: str = ""
    evaluate_every: int = 1
    compile: Literal["none", "default", "graph"] = "none"
    sync_batch_norm: bool = True
    timeout: float = 600.0
    peer_ranks: int = 1
    shard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FewshotConfig:
    """How a run is scored whose validation and test classes are not those of training: by episodes.

    Attributes:
        ways: classes in an episode.
        shots: images of each class to learn from.
        queries: images of each class to classify.
        episodes: number of episodes.
        head: how embeddings are classified: by the nearest prototype (`euclidean`, `cosine`, or `centroid` of unit
            vectors), by attention (`matching`) or by `logistic` regression; `auto` as the method trains them.
        seed: key of the episodes; of its own, so that runs of other seeds are scored on the same episodes.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    episodes: int = 1000
    head: Literal["auto", "euclidean", "cosine", "centroid", "matching", "logistic"] = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """Where a job meets others, each a run of its own, to learn from them; see `coterie.methods.codistillation_jobs`.

    Attributes:
        folder: a folder that all jobs see, or the URL of an object store, such as `s3://bucket/folder`; nothing for no
            exchange.
        job: own name, of small letters, digits, `_` and `-`; no two jobs have the same.
        partners: names of the jobs to hear; all that are found, up to `max_partners`, when there are none.
        max_partners: jobs heard at most when none is named.
        what: whole networks (`weights`), which see each batch, or the leader's scores of a number of training images
            that all jobs know (`predictions`).
        nets: networks that partners may have, when others than the own leader's; of `predictions` any.
        every: batches between two moments of exchange.
        max_age: batches that a partner may be behind; trust falls from 1, at twice `every`, to 0 at this age.
        images: number of training images whose scores are exchanged.
        keep: own blobs that are kept, newest first; 0 for all.
        timeout: seconds that the end of a run waits for its last blob to be published.
        replay: folder of a run whose exchange is repeated from its log and from blobs that are still there; then
            nothing is published.
    """

    folder: str = ""
    job: str = ""
    partners: tuple[str, ...] = ()
    max_partners: int = 4
    what: Literal["weights", "predictions"] = "weights"
    nets: tuple[str, ...] = ()
    every: int = 50
    max_age: int = 500
    images: int = 2048
    keep: int = 3
    timeout: float = 30.0
    replay: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole run. In a recipe file `method` is a table with a `name` and that method's own knobs.

    Several methods are one with `name = ["mcl_okd", "kd"]`; their knobs stand in tables `method.mcl_okd`, `method.kd`.

    Attributes:
        method: name of the method, or names with `+` between them.
        method_config: the knobs of that method.
        epochs: passes over the training set.
        seed: key of everything that is random: weights, order, augmentation, negatives, splits.
        net: the network of every peer.
        cohort: who learns together.
        teacher: who teaches from outside.
        data: what is learnt from.
        optim: how parameters are changed.
        train: how the loop runs.
        fewshot: how new classes are scored, where validation and test hold such.
        exchange: where other jobs are met.
    """

    method: str = "independent"
    method_config: Method.Config = field(default_factory=Method.Config)
    epochs: int = 300
    seed: int = 0
    net: NetConfig = NetConfig()
    cohort: CohortConfig = CohortConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    fewshot: FewshotConfig = FewshotConfig()
    exchange: ExchangeConfig = ExchangeConfig()
