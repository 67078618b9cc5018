"""Which host this is, seen from others: addresses and interfaces, for torch does not always guess them right."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from coterie.core.errors import ConfigError, ParallelError, one_line

_SIOCGIFADDR = 0x8915
_OPEN = Path("/proc/self/fd")
_LOOK = 1.0  # seconds between two looks at connections


def is_here(host: str) -> bool:
    """Whether a host is this one: whether a socket can take its address.

    Args:
        host: its name or address; empty for this one.

    Raises:
        ConfigError: the name is not known.
    """
    if not host:
        return True
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--rendezvous names {host!r}, which is not known here ({one_line(error)})") from None
    with socket.socket(family, kind) as probe, suppress(OSError):
        probe.bind(address)
        return True
    return False


def own_address(host: str, port: int) -> str:
    """The address of this host on the way to another one.

    Args:
        host: the other one; empty for the loopback interface.
        port: of it.

    Raises:
        ParallelError: there is no way.
    """
    if not host:
        return "127.0.0.1"
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)  # sends nothing
        except OSError as error:
            raise ParallelError(f"{host} cannot be reached from here ({one_line(error)})") from None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """Name of the network interface with an IPv4 address; empty where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def limit_silence(seconds: int) -> None:
    """Let connections of this process fail once the other side has said nothing for so long, as over a cut cable.

    By itself the system waits a quarter of an hour. Returns at once; a thread looks after connections still to come.

    Args:
        seconds: of silence.
    """

    def watch() -> None:
        while True:
            for path in _OPEN.iterdir():
                with suppress(OSError):
                    _limit(int(path.name), 1000 * seconds)
            time.sleep(_LOOK)

    if hasattr(socket, "TCP_USER_TIMEOUT") and _OPEN.is_dir():
        threading.Thread(target=watch, daemon=True).start()


def _limit(descriptor: int, milliseconds: int) -> None:
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
