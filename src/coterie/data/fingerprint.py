"""Digests by which a resumed run recognises its data."""

from __future__ import annotations

import hashlib

from torch import Tensor


def digest(*parts: Tensor | str) -> str:
    """Hash tensors and words with SHA-256.

    Args:
        parts: in order; of a tensor its shape, dtype and every element count.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> digest("a", "b") == digest("ab")
        False
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            state.update(f"{len(part)}:{part};".encode("utf-8", "surrogateescape"))
        else:
            state.update(f"{tuple(part.shape)}{part.dtype};".encode())
            state.update(part.detach().cpu().contiguous().numpy().data)
    return state.hexdigest()
