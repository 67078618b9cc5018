"""Layer-wise mutual contrastive learning: every stage of a peer learns from every stage of every other peer.

Each stage has an exit of its own. The contrastive losses of all pairs of stages are weighted, image by image, by a
network that learns which stages match: every so often it asks how its weights should have been for two steps on the
contrastive losses to help the cross-entropy of the exits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import cast

import torch
from torch import Tensor, nn

from coterie.cohort import Cohort
from coterie.cohort.exits import exits_of
from coterie.cohort.trial import Trial, undone
from coterie.core import METHODS, Batch, ConfigError, Facts, Method, Needs, Outer, Paper, PeerOutput, Peers, Terms
from coterie.core.knobs import check_knobs
from coterie.losses.bank_scores import bank_columns
from coterie.losses.candidates import Candidates
from coterie.losses.layerwise import layer_bank_scores, layerwise_bank_contrast, layerwise_contrast
from coterie.losses.logits import summed_cross_entropy, summed_kl
from coterie.losses.mutual_contrast import MutualContrast, batch_columns, scores_of
from coterie.memory.bank import BankDtype, MemoryBank
from coterie.memory.negatives import Negatives
from coterie.memory.outer_sgd import OuterSGD
from coterie.nets.heads import TwoLayerHead, make_heads
from coterie.nets.layer_heads import ExitGate, LayerWeights


@dataclass(frozen=True, slots=True)
class Layers:
    """What the exits say about a batch, peer by peer, first stage first; the last is the peer itself.

    Attributes:
        features: for each peer L times `[B, D]`, with gradient.
        logits: for each peer L times `[B, K]`, with gradient.
    """

    features: list[list[Tensor]]
    logits: list[list[Tensor]]

    def all_features(self) -> list[Tensor]:
        """The features of all P layers in one list."""
        return list(chain.from_iterable(self.features))

    def all_logits(self) -> list[Tensor]:
        """The logits of all P layers in one list."""
        return list(chain.from_iterable(self.logits))


@METHODS.register("l_mcl")
class LayerwiseMutualContrast(Method):
    """Cross-entropy of all exits and of their mixture, KL from all mixtures, and weighted contrast of all layer pairs.

    Exits, their heads and the gates that mix them are trained with the peers and dropped with the method; any peer is
    kept as it is.

    Attributes:
        exits: for each peer one exit after every stage but the last.
        heads: for each layer a two-layer head with L2 norm.
        gates: for each peer the mixture of its exits.
        weights: gives each pair of layers a weight for every image; only `outer_step` changes it.
        bank: with `bank=True` rows `[M, N, D]`, a bank of each peer's last embeddings; else None.
    """

    paper = Paper(
        title="Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition",
        authors="Yang et al.",
        year=2023,
        venue="TPAMI",
        arxiv="2207.11518",
    )
    needs = Needs(min_peers=2, stage_maps=True, samples_per_class=2, outer_every=50)

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Knobs of L-MCL; the defaults are those of the published code for CIFAR-100.

        Attributes:
            vcl: factor of the contrast within layers (alpha).
            icl: factor of the contrast across layers (beta).
            soft_vcl: factor of the distilled contrast within layers (gamma).
            soft_icl: factor of the distilled contrast across layers (lambda).
            contrast_temperature: tau, divides the inner products of embeddings.
            temperature: T of every KL: between exits and, on top of tau, of the soft losses.
            embedding_dim: D of the heads.
            weight_dim: size of the projections of the weight network.
            interval: steps between two updates of the weight network; 0 leaves it as it was drawn.
            inner_steps: steps on the contrastive losses that an update looks at.
            inner_momentum: of these steps.
            released_meta_gradient: repeat a slip of the published code in the gradient through those steps; by default
                it is exact.
            blocks: blocks of every rebuilt stage; 0 for as many as the network has (CIFAR), 1 as for ImageNet.
            samples_per_class: images of each class in a batch; 0 for plain shuffling. Images that are alone with their
                label take no part in vcl and icl.
            bank: contrast with rows of memory banks instead of the images of the batch, as published for ImageNet: the
                own row, one of its class and negatives shared by the batch. Batches are then shuffled.
            bank_momentum: share of a bank row that stays when its image is seen.
            bank_dtype: how bank rows are stored: `bfloat16` halves them, and is faster where the device multiplies it.
            num_negatives: S of other classes; by default 8192, or all images of other classes where fewer.
            released_banks: repeat a slip of the published code, which contrasts both layers of a pair with the bank of
                the first one's peer.
        """

        vcl: float = 0.1
        icl: float = 0.1
        soft_vcl: float = 1.0
        soft_icl: float = 1.0
        contrast_temperature: float = 0.1
        temperature: float = 3.0
        embedding_dim: int = 128
        weight_dim: int = 128
        interval: int = 50
        inner_steps: int = 2
        inner_momentum: float = 0.9
        released_meta_gradient: bool = False
        blocks: int = 0
        samples_per_class: int = 2
        bank: bool = False
        bank_momentum: float = 0.5
        bank_dtype: BankDtype = "float32"
        num_negatives: int | None = None
        released_banks: bool = False

        def __post_init__(self) -> None:
            check_knobs(
                self,
                positive=("contrast_temperature", "temperature", "embedding_dim", "weight_dim", "inner_steps"),
                not_negative=("interval", "blocks", "inner_momentum"),
                share=("bank_momentum",),
            )
            if self.samples_per_class < 0 or self.samples_per_class == 1:
                raise ConfigError(
                    f"method.samples_per_class={self.samples_per_class} leaves images without a partner;"
                    " give 2 or more, or 0 for plain shuffling"
                )

    config: Config
    exits: nn.ModuleList
    heads: nn.ModuleList
    gates: nn.ModuleList
    weights: LayerWeights

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(config, facts)
        self._depths: tuple[int, ...] = ()
        self._used: Tensor | None = None
        self.bank: MemoryBank | None = None
        if config.bank:
            share, dim, dtype = config.bank_momentum, config.embedding_dim, config.bank_dtype
            self.bank = MemoryBank(facts.num_peers, facts.num_train, dim, momentum=share, seed=facts.seed, dtype=dtype)
            self.negatives = Negatives(
                facts.labels, config.num_negatives, seed=facts.seed, most=8192, lower=facts.limited
            )
            self.memories |= {"bank": self.bank, "negatives": self.negatives}

    def requirements(self) -> Needs:
        """The needs, with the samples per class and the interval of the configuration."""
        config = self.config
        per_class = 0 if config.bank else config.samples_per_class
        return replace(self.needs, samples_per_class=per_class, outer_every=config.interval)

    def attach(self, cohort: nn.Module) -> None:
        """Build exits from the peers' own stages, with fresh weights, and what reads them.

        Raises:
            ConfigError: a peer is no staged network.
        """
        config, dims = self.config, self.facts.embedding_dims
        self.exits = exits_of(list(cast("Cohort", cohort).nets), blocks=config.blocks)
        self._depths = tuple(len(cast("nn.ModuleList", own)) + 1 for own in self.exits)
        layers = [[dim] * depth for dim, depth in zip(dims, self._depths, strict=True)]
        self.heads = make_heads(TwoLayerHead, chain.from_iterable(layers), config.embedding_dim)
        self.gates = nn.ModuleList(ExitGate(dim, depth) for dim, depth in zip(dims, self._depths, strict=True))
        self.weights = LayerWeights(layers, config.weight_dim)
        self._sgd = OuterSGD(self.weights.named_parameters())
        self.memories["weight_sgd"] = self._sgd

    def layers(self, peers: Peers) -> Layers:
        """Run the exits of all peers on their stage maps."""
        found = Layers([], [])
        for own, peer in zip(self.exits, peers, strict=True):
            features, logits = zip(*_said(cast("nn.ModuleList", own), peer), strict=True)
            found.features.append(list(features))
            found.logits.append(list(logits))
        return found

    def losses(self, peers: Peers, batch: Batch) -> Terms:
        """Terms `task` (to all exits), `mixed` (to all exits and gates) and `mixed_kl` (to the peers' own logits).

        Further `vcl`, `icl`, `soft_vcl` and `soft_icl`, with gradient to the features and heads of all layers; the
        weights of layer pairs are constants here.
        """
        layers = self.layers(peers)
        mixed = [gate(*said) for gate, *said in zip(self.gates, layers.features, layers.logits, strict=True)]
        last = [peer.logits for peer in peers for _ in mixed]
        pulls = summed_kl(last, mixed * len(peers), temperature=self.config.temperature)
        with torch.no_grad():
            weights = self.weights(layers.all_features())
        terms = Terms().add("task", summed_cross_entropy(layers.all_logits(), batch.labels))
        terms.add("mixed", summed_cross_entropy(mixed, batch.labels)).add("mixed_kl", pulls)
        embeddings = self.embed(layers)
        self._used = embeddings.detach()
        return self._add_contrast(terms, self.contrast(embeddings, batch, weights))

    def embed(self, layers: Layers) -> Tensor:
        """Unit embeddings of all P layers, `[P, B, D]`, with gradient to features and heads."""
        features = zip(self.heads, layers.all_features(), strict=True)
        return torch.stack([head(feature) for head, feature in features])

    def contrast(self, embeddings: Tensor, batch: Batch, weights: Tensor) -> MutualContrast:
        """Contrast all pairs of layers, `[P, B, D]`, weighted by `[P, P, B]`; gradient to both."""
        config = self.config
        if self.bank is not None:
            return self._bank_contrast(self.bank, embeddings, batch, weights)
        columns = batch_columns(batch.labels, self_pair=False, soft_self=True)
        scores = scores_of(embeddings, embeddings, temperature=config.contrast_temperature)
        return layerwise_contrast(scores, weights, within=columns, across=columns, temperature=config.temperature)

    def after_step(self, peers: Peers, batch: Batch) -> None:
        """Move the batch's bank rows towards the last embeddings of this step."""
        if self._used is not None and self.bank is not None:
            self.bank.update(batch.indices, self._used[self._last_layers()])
        self._used = None

    def outer_step(self, outer: Outer) -> None:
        """Update the weight network; peers, exits, heads and running statistics end as they were, to the bit."""
        group = outer.optimizer.param_groups[0]
        rate, decay = group["lr"], group["weight_decay"]
        learnt = list(self.outer_parameters())
        with torch.enable_grad(), undone([outer.cohort, self]):
            trial = Trial(self._stepped(outer), lr=rate, momentum=self.config.inner_momentum, weight_decay=decay)
            for _ in range(self.config.inner_steps):
                trial.step(lambda: self._inner(outer))
            trial.step(lambda: self._outer(outer))
            gradients = trial.hypergradient(
                lambda: self._outer(outer), learnt, released=self.config.released_meta_gradient
            )
        self._sgd.step(learnt, gradients, lr=rate, weight_decay=decay)

    def outer_parameters(self) -> Iterable[nn.Parameter]:
        """The weight network."""
        return self.weights.parameters()

    def describe(self) -> dict[str, str]:
        """Exits, pairs of layers, and when their weights are learnt."""
        depths, pairs = self._depths, self._num_pairs()
        added = sum(parameter.numel() for parameter in self.exits.parameters())
        return {
            "exits": f"{list(depths)} per peer, the last one its own; {added:,} parameters that are dropped afterwards",
            "contrast": f"{pairs} ordered pairs of layers over {'memory banks' if self.bank else 'the batch'}",
            "weights": f"learnt every {self.config.interval} steps" if self.config.interval else "not learnt",
        }

    def _last_layers(self) -> list[int]:
        """Where the peers themselves stand among all P layers."""
        return [end - 1 for end in accumulate(self._depths)]

    def _num_pairs(self) -> int:
        """Ordered pairs of layers of different peers."""
        return sum(self._depths) ** 2 - sum(depth**2 for depth in self._depths)

    def _bank_contrast(self, bank: MemoryBank, embeddings: Tensor, batch: Batch, weights: Tensor) -> MutualContrast:
        config, own = self.config, batch.indices
        positives = torch.stack([own, self.negatives.same_class(batch.labels, own, batch.step)], dim=1)
        rows, same_class = self.negatives.shared(batch.labels, batch.step)
        candidates = Candidates(positives=own, negatives=rows, same_class=same_class)
        scores = layer_bank_scores(
            embeddings,
            bank.rows,
            positives=positives,
            candidates=candidates,
            temperature=config.contrast_temperature,
        )
        return layerwise_bank_contrast(
            scores,
            weights,
            layers=self._depths,
            columns=bank_columns(candidates, positives.shape[1], self_pair=True, dtype=scores.dtype),
            temperature=config.temperature,
            released_banks=config.released_banks,
        )

    def _inner(self, outer: Outer) -> Tensor:
        """The weighted contrastive losses, with gradient to the weight network too."""
        layers = self.layers(outer.forward(outer.batch))
        weights = self.weights(layers.all_features())
        return self._add_contrast(Terms(), self.contrast(self.embed(layers), outer.batch, weights)).total()

    def _outer(self, outer: Outer) -> Tensor:
        """The cross-entropy of all exits."""
        return summed_cross_entropy(self.layers(outer.forward(outer.batch)).all_logits(), outer.batch.labels)

    def _stepped(self, outer: Outer) -> list[Tensor]:
        """What the main optimiser changes."""
        learnt = {id(parameter) for parameter in self.outer_parameters()}
        return [parameter for parameter in _trained_by(outer.optimizer) if id(parameter) not in learnt]

    def _add_contrast(self, terms: Terms, contrast: MutualContrast) -> Terms:
        config = self.config
        terms.add("vcl", contrast.vcl, config.vcl).add("icl", contrast.icl, config.icl)
        return terms.add("soft_vcl", contrast.soft_vcl, config.soft_vcl).add(
            "soft_icl", contrast.soft_icl, config.soft_icl
        )


def _said(exits: nn.ModuleList, peer: PeerOutput) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and logits of each exit of a peer, then its own."""
    for end, maps in zip(exits, peer.stages[1:-1], strict=True):
        yield end(maps)
    yield peer.embedding, peer.logits


def _trained_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    given = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    return [parameter for parameter in given if parameter.requires_grad]
