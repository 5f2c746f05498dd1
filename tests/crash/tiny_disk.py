"""A real, tiny disk: a tmpfs in a mount namespace of a forked child, which ends with it."""

from __future__ import annotations

import ctypes
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 16384, 1 << 18
CANNOT = 77


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise PermissionError(number, f"{name}: {os.strerror(number)}")


def _own_mounts() -> None:
    try:
        _call("unshare", _CLONE_NEWNS)
    except PermissionError:
        user, group = os.getuid(), os.getgid()
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def fill(folder: Path) -> None:
    """Leave not a single free block."""
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 512, 64, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def free(folder: Path) -> None:
    (folder / "filler").unlink()


def make_read_only(folder: Path) -> None:
    _call("mount", None, str(folder).encode(), None, _MS_REMOUNT | _MS_RDONLY, None)


def on_tiny_disk(folder: Path, deed: Callable[[], int], *, size: str = "2m") -> tuple[int, Path]:
    """Do *deed* in a child where *folder* lies on a disk of *size*; return its result and what it left.

    What *folder* held is on the tiny disk, too.
    """
    kept = folder.parent / f"{folder.name}-kept"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                _own_mounts()
                spare = folder.parent / f"{folder.name}-before"
                shutil.copytree(folder, spare)
                _call("mount", b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode())
            except OSError:
                traceback.print_exc()
                os._exit(CANNOT)
            shutil.copytree(spare, folder, dirs_exist_ok=True)
            code = deed()
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("filler"))
        except BaseException:  # noqa: BLE001 - the child says what happened and ends, whatever it was
            traceback.print_exc()
            code = 101
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == CANNOT:
        pytest.skip("this machine allows no mount namespaces")
    return code, kept
