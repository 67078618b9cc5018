"""Places where jobs meet: a folder, or what fsspec opens, such as an object store."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Protocol

from coterie.core.errors import CheckpointError, ConfigError, one_line
from coterie.core.files import open_regular, reason, sync_folder, write_synced

TEMPORARY = ".tmp-"
"""Prefix of the name under which a folder holds what is not whole yet."""


class Place(Protocol):
    """Named contents that are whole or absent. What cannot be reached raises any `Exception` but `FileNotFoundError`.

    Attributes:
        where: what messages call it.
    """

    where: str

    def make(self) -> None:
        """Make the place when it is not there; raises `ConfigError` when that cannot be."""

    def sizes(self) -> dict[str, int]:
        """Names of all that is there, with their bytes."""

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a content, or fewer; raises `FileNotFoundError` when it is gone."""

    def write(self, name: str, content: bytes) -> None:
        """Store a content under a name that nothing has."""

    def remove(self, name: str) -> None:
        """Remove a content; nothing happens when it is gone."""


class FolderPlace:
    """A folder that all jobs see. A blob is written beside its place, brought to disk and renamed; no link is followed.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def make(self) -> None:
        """Make the folder and its parents.

        Raises:
            ConfigError: it cannot be made or is a file.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make exchange.folder {self.where}: {reason(error)}; give another") from error

    def sizes(self) -> dict[str, int]:
        """Regular files of the folder with their bytes."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # retired by its owner meanwhile
                    if entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def read(self, name: str, start: int, end: int) -> bytes:
        """Read a part of a regular file; raises `FileNotFoundError` when it is gone, `CheckpointError` for a link."""
        try:
            with open_regular(self.folder / name) as file:
                file.seek(start)
                return file.read(end - start)
        except CheckpointError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise

    def write(self, name: str, content: bytes) -> None:
        """Write a file; a crash leaves a hidden name that `sizes` gives and no reader takes for a blob."""
        temporary = self.folder / f"{TEMPORARY}{name}"
        try:
            write_synced(temporary, content)
            temporary.replace(self.folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.folder)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)


class ObjectPlace:
    """What fsspec opens by its URL: an object store, where an upload appears whole or not at all.

    Args:
        url: such as `s3://bucket/folder`; credentials are the environment's.

    Raises:
        ConfigError: no such protocol, a package for it is missing, or the URL holds a password.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # a tenth of a second, and only needed here

        if re.match(r"[^/]*://[^/]*@", url):
            raise ConfigError("exchange.folder holds credentials, which would be written into every recipe; put them"
                              " into the environment or the configuration of the store")  # fmt: skip
        self.where = url
        try:
            self.files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError, TypeError) as error:
            raise ConfigError(f"exchange.folder {url} cannot be opened: {one_line(error)}") from None
        self.root = str(root).rstrip("/")

    def make(self) -> None:
        """Nothing: an object store has no folders."""

    def sizes(self) -> dict[str, int]:
        """Objects below the URL with their bytes; none where there is nothing yet."""
        self.files.invalidate_cache()
        try:
            found: list[dict[str, Any]] = self.files.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return {str(item["name"]).rpartition("/")[2]: int(item["size"]) for item in found if item["type"] == "file"}

    def read(self, name: str, start: int, end: int) -> bytes:
        """Read a part of an object."""
        content: bytes = self.files.cat_file(f"{self.root}/{name}", start=start, end=end)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Store an object."""
        self.files.pipe_file(f"{self.root}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove an object."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")


def open_place(where: str) -> Place:
    """Open a place by a path or a URL; nothing is read or written.

    Raises:
        ConfigError: the URL cannot be opened on this machine.
    """
    return ObjectPlace(where) if "://" in where else FolderPlace(Path(where))
