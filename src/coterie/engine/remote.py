"""A folder or object store anywhere, by URL: whole files in and out, through fsspec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from coterie.core.errors import CheckpointError, ConfigError, one_line
from coterie.core.files import reason


class Remote:
    """Files below a URL, by names with slashes.

    Args:
        url: a folder, or `s3://bucket/folder` and whatever else fsspec knows; made when it is first written to.

    Raises:
        ConfigError: the URL is of no known kind, its driver is missing, or it holds a password.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        _refuse_secrets(url)
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"train.mirror={url!r} cannot be used: {one_line(error)}; give a folder or URL") from None
        self._root = str(root).rstrip("/")

    def __str__(self) -> str:
        return self.url

    def names(self, folder: str = "") -> list[str]:
        """Names directly below a folder, sorted; none where nothing was ever written.

        Raises:
            CheckpointError: the store cannot be reached.
        """
        with self._reached():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None when there is none."""
        with self._reached():
            self._files.invalidate_cache()
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, *, limit: int = 64 << 20) -> bytes | None:
        """Content of a small file, or None when there is none.

        Raises:
            CheckpointError: it is larger than `limit` bytes, or the store cannot be reached.
        """
        size = self.size(name)
        if size is None:
            return None
        if size > limit:
            raise CheckpointError(f"{name} in {self} has {size} bytes and at most {limit} are read; remove it")
        with self._reached():
            content: bytes = self._files.cat_file(self._path(name))
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in place of the one that is there."""
        self._put(lambda path: self._files.pipe_file(path, content), name)

    def create(self, name: str, content: bytes) -> None:
        """Write a small file that must not be there yet; the store decides between two writers where it can.

        Raises:
            CheckpointError: it is there, or the store cannot be reached.
        """
        try:
            self._put(lambda path: self._files.pipe_file(path, content, mode="create"), name)
        except FileExistsError:
            raise CheckpointError(f"{name} in {self} is there already: another run writes here") from None

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of this machine to the store, in place of the one that is there."""
        self._put(lambda to: self._files.put_file(str(path), to), name)

    def download(self, name: str, path: Path) -> None:
        """Copy a file of the store to this machine."""
        with self._reached():
            self._files.get_file(self._path(name), str(path))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder, if it is there."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path(name), recursive=True)

    def _put(self, write: Any, name: str) -> None:  # noqa: ANN401 - a function of a path
        path = self._path(name)
        with self._reached():
            try:
                write(path)
            except FileNotFoundError:  # a store with folders, and this one is missing
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                write(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Whatever a driver raises becomes one line; that a file exists is for the caller."""
        try:
            yield
        except (CheckpointError, FileExistsError):
            raise
        except Exception as error:  # drivers have errors of their own
            raise CheckpointError(f"cannot reach {self}: {one_line(_told(error))}; check the address") from error


def _told(error: Exception) -> Exception:
    return Exception(reason(error) or type(error).__name__)


def _refuse_secrets(url: str) -> None:
    """Refuse what would be written into every recipe and checkpoint."""
    authority = url.partition("://")[2].partition("/")[0]
    if ":" in authority.rpartition("@")[0]:
        raise ConfigError(
            "train.mirror holds a password, which would be stored with the run; give it to the driver by the variables"
            " of its environment"
        )
