"""What every loss with a frozen teacher begins with: the teacher is a constant, precision is full, shapes fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.core.errors import ShapeError


def lesson(
    student: Tensor, teacher: Tensor, *, axes: str, shared: int, remedy: str, detach: bool = True
) -> tuple[Tensor, Tensor]:
    """Check that a student's tensor and a teacher's fit together, and make both ready for a loss.

    Args:
        student: any dtype; gradient passes.
        teacher: any dtype; a constant from here on, unless `detach` is off.
        axes: their names, for instance `B, D`; both tensors must have as many, or more where the last is `...`.
        shared: how many of the first axes must have equal lengths.
        remedy: what to do when they do not, the end of the error's sentence.
        detach: off where a head on top of the frozen teacher learns.

    Returns:
        Both in one dtype, the longer of the two and at least float32.

    Raises:
        ShapeError: another number of axes, or other lengths.

    Example:
        >>> own, goal = lesson(torch.zeros(2, 3).half(), torch.zeros(2, 5), axes="B, D", shared=1, remedy="no idea")
        >>> own.dtype, goal.shape
        (torch.float32, torch.Size([2, 5]))
    """
    names = axes.split(", ")
    excess = [values.dim() - len(names) for values in (student, teacher)]
    counted = min(excess) >= 0 if names[-1] == "..." else not any(excess)
    if not counted or student.shape[:shared] != teacher.shape[:shared]:
        raise ShapeError(
            f"tensors of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be [{axes}] with"
            f" equal {', '.join(names[:shared])}; {remedy}"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), (teacher.detach() if detach else teacher).to(dtype)


def same_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Make ready maps `[B, C, H, W]` that must have one shape; see `lesson`."""
    return lesson(student, teacher, axes="B, C, H, W", shared=4, remedy="connect the student's map to that shape first")


def same_images(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Make ready maps `[B, C, H, W]` of the same images, of any channels and sizes; see `lesson`."""
    return lesson(student, teacher, axes="B, C, H, W", shared=1, remedy="give both networks the same batch")


def in_pairs(students: Sequence[Tensor], teachers: Sequence[Tensor], *, least: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of a student's layers with those of a teacher's.

    Args:
        students: one for each layer, shallow to deep.
        teachers: as many.
        least: how many layers there must be.

    Returns:
        (student's, teacher's) for each layer.

    Raises:
        ShapeError: the numbers differ or are too small.
    """
    if not len(students) == len(teachers) >= least:
        shapes = [[tuple(one.shape) for one in side] for side in (students, teachers)]
        raise ShapeError(
            f"layers of student {shapes[0]} and teacher {shapes[1]} do not pair up; give {least} or more each, as many"
        )
    return list(zip(students, teachers, strict=True))
