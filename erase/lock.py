"""One process at a time in a folder."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, held for the block's duration, or until the process dies in whatever way.

    Raises ValueError that names the process which holds it, or says why the folder cannot be written. The lock is the
    kernel's own, so a killed process leaves none behind; the file says who holds it and goes away with the lock.
    """
    path = folder / ".lock"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is still held: nobody else's file is taken away
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):  # if nothing came of it
                folder.rmdir()


@contextmanager
def locked_by_main(folder: Path) -> Iterator[None]:
    """`locked` for a command that several processes share: the main one holds it for all."""
    from erase.processes import main_first

    with ExitStack() as held:
        main_first(lambda: held.enter_context(locked(folder)))
        yield


def _take(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if _lock(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> bool:
    """Whether the open file is locked and still the one of that name, which its last holder may have taken away."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace") or "another process"
        raise ValueError(f"{path.parent} is in use by {holder}: wait until that ends, or give another --out.") from None
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): do not start a second run in it.", path.parent, error.strerror)
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
