"""Storage on this machine's file systems: whole files appear by rename, so that no reader sees a part of one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class LocalFiles:
    """Paths as storage; files are flushed to disk before they become visible."""

    def kind(self, url: str) -> str | None:
        """'file', 'folder', or None when nothing is there."""
        path = Path(url)
        if path.is_dir():
            return "folder"
        return "file" if path.exists() else None

    def size(self, url: str) -> int:
        """Bytes of the file."""
        return Path(url).stat().st_size

    def read(self, url: str, start: int | None, stop: int | None) -> bytes:
        """The bytes from start to stop, fewer where the file ends."""
        with open(url, "rb") as stream:
            stream.seek(start or 0)
            return stream.read(-1 if stop is None else stop - (start or 0))

    def write(self, url: str, data: bytes | memoryview) -> None:
        """Replace the whole file."""
        with self.open_write(url) as stream:
            stream.write(data)

    def create_once(self, url: str, data: bytes) -> bool:
        """Write the file unless it is there."""
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return False
        written = _temporary(path)
        try:
            _write_flushed(written, data)
            os.link(written, path)  # fails when the name is taken, and never shows a part
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _created(path, data)
        finally:
            written.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def open_read(self, url: str) -> Iterator[BinaryIO]:
        """A seekable stream."""
        with open(url, "rb") as stream:
            yield stream

    @contextlib.contextmanager
    def open_write(self, url: str) -> Iterator[BinaryIO]:
        """A stream into a temporary file beside the target, renamed at the end; into a device or pipe as it is."""
        path = Path(url)
        if _is_device(path):
            with open(path, "wb") as stream:
                yield stream
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        written = _temporary(path)
        try:
            with open(written, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            written.replace(path)
        finally:
            written.unlink(missing_ok=True)

    def children(self, url: str) -> list[str]:
        """Names in the folder; temporary files of writers at work are not shown."""
        try:
            return [entry.name for entry in os.scandir(url) if not entry.name.startswith(_TEMPORARY)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def matches(self, url: str, pattern: str) -> dict[str, int]:
        """Files under the folder that match, relative to it, with their bytes."""
        root = Path(url)
        found = (path for path in root.glob(pattern) if path.is_file() and not path.name.startswith(_TEMPORARY))
        return {path.relative_to(root).as_posix(): path.stat().st_size for path in found}

    def remove(self, url: str) -> None:
        """Delete the file or folder, if it is there."""
        path = Path(url)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def make_folder(self, url: str) -> None:
        """Make the folder and its parents."""
        Path(url).mkdir(parents=True, exist_ok=True)

    def free_bytes(self, url: str) -> int | None:
        """Free bytes of the disk that the folder is, or would be, on."""
        return shutil.disk_usage(self.nearest(url)).free

    def nearest(self, url: str) -> str:
        """The folder itself, or the nearest above it that is there."""
        path = Path(url)
        while not path.exists():
            path = path.parent
        return str(path)


def _is_device(path: Path) -> bool:
    """Whether what stands here takes bytes and is no file: /dev/null and such, which a rename would replace."""
    return path.exists() and not path.is_dir() and (not path.is_file() or path.parent == Path("/dev"))


def _created(path: Path, data: bytes) -> bool:
    """Write the file unless it is there, on a file system without links: a reader may see a part for a moment."""
    try:
        with open(path, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


LOCAL = LocalFiles()

# What file systems without hard links say: gcsfuse, SMB, exFAT.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

_TEMPORARY = ".raylm-writing-"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")


def _write_flushed(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
