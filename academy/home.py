"""Where Academy keeps its files, and how it keeps them from other users."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def get_academy_home() -> Path:
    """Return `$ACADEMY_HOME`, or else `~/.local/share/academy`.

    The directory need not exist yet.
    """
    home = os.environ.get("ACADEMY_HOME") or "~/.local/share/academy"
    return Path(home).expanduser().absolute()


def private_directory(path: str | os.PathLike[str]) -> Path:
    """Make a directory for secrets (mode 0700), or check the one there is.

    Others may be able to look into a directory that exists already, since the files
    themselves are private. They must not be able to replace the files.

    Raises:
        PermissionError: The directory belongs to, or can be written by, somebody else.
    """
    path = Path(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        found = path.stat()
        if found.st_uid != os.getuid():
            raise PermissionError(
                f"{path} belongs to user id {found.st_uid}, not to you "
                f"({os.getuid()}), so it cannot hold your secrets. Set ACADEMY_HOME to "
                "a directory of your own."
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(
                f"{path} can be written by others (mode "
                f"{stat.S_IMODE(found.st_mode):04o}), who could replace the secrets in "
                f"it. Run: chmod go-w {path}"
            )
    return path


def write_private(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a file only its owner can read (mode 0600), all of it or nothing.

    A reader sees the old content or the new, and so does whoever comes after a crash.
    Missing parent directories are made, private as well.
    """
    path = Path(path)
    if not path.parent.exists():
        private_directory(path.parent)
    if isinstance(content, str):
        content = content.encode()
    # mkstemp gives mode 0600 from the start: there is no moment to read it in.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from changing a file meanwhile, if they ask for it as well.

    The lock is that of a file beside it, since the file itself is replaced. On a file
    system that keeps no locks (Lustre mounted without) nobody is kept from work.
    """
    import fcntl  # Windows, where this module is imported as well, has none

    path = Path(path)
    if not path.parent.exists():
        private_directory(path.parent)
    with open(path.with_name(f".{path.name}.lock"), "a", opener=_private) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("afs", "autofs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs"),
        *("glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "panfs", "pvfs2"),
        *("smb3", "smbfs", "wekafs", "9p"),
    )
)
"""Types of file systems, as the kernel names them, that several machines share."""


def local_directory(shared: Collection[str] = NETWORK_FILE_SYSTEMS) -> Path:
    """Return the home, or a directory on a local disk where the home is not on one.

    Files that several machines must not share go there: `/var/tmp` survives reboots.

    Args:
        shared: types of file systems that several machines may use at once.
    """
    home = get_academy_home()
    if _file_system(home) not in shared:
        return home
    return Path("/var/tmp") / f"academy-{os.getuid()}"


def _file_system(path: Path) -> str:
    """Return the type of file system that a path is or would be on."""
    import psutil

    path = path.resolve()
    mounts = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if path.is_relative_to(part.mountpoint)
    ]
    return max(mounts, default=(0, ""))[1]
