"""What is wrong with images, found by comparing their prints: damage, copies, leaks, classes that cannot be learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from coterie.core.files import JsonValue
from coterie.data.lookalikes import find_lookalikes
from coterie.data.prints import ImagePrint

TRAIN = "train"

_SHOWN = 4  # names that stand for a group
_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # what some telephones write
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}

FAULTS: Mapping[str, str] = {
    "damaged": "cannot be decoded; restore or remove them",
    "not images": "are no image files or are in no class; move or remove them",
    "wrong extensions": "are of another format than their name says; rename them",
    "duplicates": "groups of equal images within a class; keep one of each",
    "mislabelled": "groups of equal images in several classes; leave each in one",
    "leaks": "groups of equal images in several of train, val and test; remove them from train",
    "empty classes": "have no images; add some or remove the folder",
    "lone classes": "have a single training image; add some or remove the class",
    "unknown classes": "are not in train; add them there or remove them",
}
"""Kinds of findings that ask to be mended, and what they are."""

NOTES: Mapping[str, str] = {
    "lookalikes": "pairs look alike and are not equal; see whether one is a copy",
    "sizes": "sizes of images",
    "modes": "modes of pixels, all of which become 8-bit RGB",
}
"""Kinds of findings that are only worth knowing."""

_MEANINGS = {**FAULTS, **NOTES}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was found: the images or classes it is about, and a word on it."""

    names: tuple[str, ...]
    detail: str = ""

    def text(self) -> str:
        """The item in a few words; of a large group the first names."""
        rest = f" = {len(self.names) - _SHOWN} more" * (len(self.names) > _SHOWN)
        return " = ".join(self.names[:_SHOWN]) + rest + f" ({self.detail})" * bool(self.detail)


@dataclass(frozen=True, slots=True)
class Finding:
    """All that was found of one kind.

    Attributes:
        kind: a key of `FAULTS` or `NOTES`.
        items: what was found, never empty.
    """

    kind: str
    items: tuple[Item, ...]

    @property
    def is_fault(self) -> bool:
        """Whether it asks to be mended."""
        return self.kind in FAULTS

    def line(self, most: int = 3) -> str:
        """Say it in one line, with the first `most` names."""
        shown = ", ".join(item.text() for item in self.items[:most])
        rest = f", and {len(self.items) - most} more" * (len(self.items) > most)
        return f"{self.kind}: {len(self.items)} {_MEANINGS[self.kind]}: {shown}{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCheck:
    """What a data set holds and what is wrong with it.

    Attributes:
        counts: images, damaged ones included, of each part.
        classes: number of classes with images.
        findings: faults first; kinds of which nothing was found are left out.
    """

    counts: Mapping[str, int]
    classes: int
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing asks to be mended; notes do not count."""
        return not any(finding.is_fault for finding in self.findings)

    def as_json(self) -> dict[str, JsonValue]:
        """Everything, each item in full."""
        return {
            "counts": dict(self.counts),
            "classes": self.classes,
            "clean": self.is_clean,
            "findings": {
                finding.kind: [{"names": list(item.names), "detail": item.detail} for item in finding.items]
                for finding in self.findings
            },
        }


def find_faults(prints: Sequence[ImagePrint], listed: Mapping[str, Iterable[Item]]) -> DataCheck:
    """Compare prints with each other.

    Args:
        prints: of all images of a data set.
        listed: findings of kinds that were seen in names alone.

    Returns:
        The data set's check.
    """
    whole, damaged = _by_damage(prints)
    groups = list(_equal_groups(whole))
    found: dict[str, Iterable[Item]] = {
        **listed,
        "damaged": (Item((image.place.name,), image.damage) for image in damaged),
        "wrong extensions": filter(None, map(_wrong_extension, whole)),
        "duplicates": chain.from_iterable(map(_duplicates, groups)),
        "mislabelled": _spread(groups, lambda image: image.place.label),
        "leaks": _spread(groups, lambda image: image.place.part),
        "lookalikes": _lookalikes(whole),
        "sizes": _several(whole, lambda image: f"{image.size[0]} x {image.size[1]}"),
        "modes": _several(whole, lambda image: image.mode),
    }
    return DataCheck(
        counts=Counter(image.place.part for image in prints),
        classes=len({image.place.label for image in prints}),
        findings=_in_order(found),
    )


def _in_order(found: Mapping[str, Iterable[Item]]) -> tuple[Finding, ...]:
    findings = (Finding(kind, tuple(found.get(kind, ()))) for kind in _MEANINGS)
    return tuple(finding for finding in findings if finding.items)


def _by_damage(prints: Iterable[ImagePrint]) -> tuple[list[ImagePrint], list[ImagePrint]]:
    """Whole images and damaged ones."""
    both: tuple[list[ImagePrint], list[ImagePrint]] = ([], [])
    for image in prints:
        both[bool(image.damage)].append(image)
    return both


def _equal_groups(prints: Iterable[ImagePrint]) -> Iterator[list[ImagePrint]]:
    """Images of equal pixels, two or more."""
    groups: dict[bytes, list[ImagePrint]] = {}
    for image in prints:
        groups.setdefault(image.pixels, []).append(image)
    return (group for group in groups.values() if len(group) > 1)


def _duplicates(group: Sequence[ImagePrint]) -> Iterator[Item]:
    """Of equal images, those of one class and part, two or more."""
    by_class: dict[tuple[str, str], list[ImagePrint]] = {}
    for image in group:
        by_class.setdefault((image.place.part, image.place.label), []).append(image)
    for alike in by_class.values():
        if len(alike) > 1:
            files = {image.file for image in alike}
            same = "one file" if len(files) == 1 and files != {b""} else "equal pixels"
            yield Item(tuple(image.place.name for image in alike), same)


def _spread(groups: Iterable[Sequence[ImagePrint]], of: Callable[[ImagePrint], str]) -> Iterator[Item]:
    """Groups of equal images that differ in something."""
    for group in groups:
        kinds = dict.fromkeys(map(of, group))
        if len(kinds) > 1:
            yield Item(tuple(image.place.name for image in group), ", ".join(kinds))


def _wrong_extension(image: ImagePrint) -> Item | None:
    path = image.place.path
    if path is None or path.suffix.lower() in _SUFFIXES[image.kind]:
        return None
    return Item((image.place.name,), image.kind)


def _lookalikes(prints: Iterable[ImagePrint]) -> Iterator[Item]:
    """Pairs that look alike, one image standing for all of equal pixels; those across parts or classes say so."""
    firsts = list({image.pixels: image for image in reversed(list(prints))}.values())[::-1]
    for i, j, bits in find_lookalikes([image.look for image in firsts]):
        yield _pair(firsts[i], firsts[j], bits)


def _pair(first: ImagePrint, second: ImagePrint, bits: int) -> Item:
    sides = [(image.place.part, image.place.label) for image in (first, second)]
    words = [f"{a}, {b}" for a, b in zip(*sides, strict=True) if a != b]
    return Item((first.place.name, second.place.name), "; ".join([f"{bits} of 128 bits", *words]))


def _several(prints: Iterable[ImagePrint], of: Callable[[ImagePrint], str]) -> Iterator[Item]:
    """How many images there are of each kind, the commonest first, when there are several kinds."""
    counts = Counter(map(of, prints))
    for kind, count in counts.most_common() if len(counts) > 1 else ():
        yield Item((kind or "unknown",), f"{count} images")
