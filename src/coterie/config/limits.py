"""The ranges that single knobs must lie in, and the sentence for a value outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Check = tuple[Callable[[float], bool], str]

_POSITIVE: Check = (lambda value: value > 0, "give a number above 0")
_COUNT: Check = (lambda value: value >= 1, "give at least 1")
_NOT_NEGATIVE: Check = (lambda value: value >= 0, "give 0 or more")
_ANY: Check = (lambda value: True, "")
_SHARE: Check = (lambda value: 0 <= value < 1, "give a share from 0 up to, not including, 1")

LIMITS: Mapping[str, Check] = {
    "epochs": _COUNT,
    "seed": _NOT_NEGATIVE,
    "cohort.peers": _COUNT,
    "cohort.shared": _NOT_NEGATIVE,
    "data.batch_size": (lambda value: value >= 2, "give at least 2, batch normalisation needs two images"),
    "data.validation": _SHARE,
    "data.limit": _NOT_NEGATIVE,
    "data.image_size": _NOT_NEGATIVE,
    "data.padding": _NOT_NEGATIVE,
    "data.views": _COUNT,
    "data.workers": _NOT_NEGATIVE,
    "data.memory_mb": _NOT_NEGATIVE,
    "data.classes": (lambda value: value >= 2, "give at least 2"),
    "data.samples": _COUNT,
    "optim.lr": _POSITIVE,
    "optim.momentum": _SHARE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.every": _NOT_NEGATIVE,
    "optim.gamma": _POSITIVE,
    "optim.warmup_epochs": _NOT_NEGATIVE,
    "optim.clip": _NOT_NEGATIVE,
    "optim.accumulate": _COUNT,
    "train.threads": _NOT_NEGATIVE,
    "train.log_every": _NOT_NEGATIVE,
    "train.checkpoint_every": _NOT_NEGATIVE,
    "train.keep": (lambda value: value >= 2, "give at least 2, so that a damaged checkpoint has a predecessor"),
    "train.keep_every": _NOT_NEGATIVE,
    "train.evaluate_every": _COUNT,
    "train.timeout": _POSITIVE,
    "fewshot.ways": (lambda value: value >= 2, "give at least 2 classes"),
    "fewshot.shots": _COUNT,
    "fewshot.queries": _COUNT,
    "fewshot.episodes": (lambda value: value >= 2, "give at least 2, an interval needs two"),
    "exchange.max_partners": _COUNT,
    "exchange.every": _COUNT,
    "exchange.max_age": _COUNT,
    "exchange.images": _COUNT,
    "exchange.keep": _NOT_NEGATIVE,
    "exchange.timeout": _POSITIVE,
    "method.temperature": _POSITIVE,
    "method.contrast_temperature": _POSITIVE,
    "method.num_negatives": _COUNT,
    "method.embedding_dim": _COUNT,
    "method.bank_momentum": _SHARE,
}


def outside(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the key and the remedy of every value that is out of its range.

    Args:
        values: dotted key to value, of the declared types.
    """
    for key, value in values.items():
        table, _, rest = key.partition(".")  # `method.kd.temperature` has the limits of `method.temperature`
        fits, remedy = LIMITS.get(f"{table}.{rest.rpartition('.')[2]}" if rest else table, _ANY)
        if isinstance(value, int | float) and not fits(value):
            yield key, f"is {value!r}; {remedy}"
