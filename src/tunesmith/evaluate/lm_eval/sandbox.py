"""`python -m tunesmith.evaluate.lm_eval.sandbox ORDER.json -- COMMAND…`: a command that will run strangers' programs.

What holds, where the kernel lets an ordinary user make namespaces (Linux 5.12 or later; `told` in the order says it):

* no network, not even the loopback interface's servers;
* every file system read-only but one directory for results, and a file system in memory (1 GiB) for everything else:
  working directory (with links to what was in it), HOME, TMPDIR, /dev/shm, and whatever is written into caches;
* processes outside cannot be seen or signalled, and nothing that was started lives on;
* no capabilities and none to be had from set-uid programs.

And everywhere: limits on processor time, memory, file size and the number of processes, a bare environment without
credentials, a time limit on the whole.

What does not hold: files that you can read can be read, though there is nowhere to send them; programs share a process
tree with the harness that scores them, so that a program made for it can fake its score or break the scoring of
others; the number of processes of root is not limited; a hole in the kernel is one in the sandbox. Where that is not
enough, run the recipe in a virtual machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.process import die_with_parent

# linux/sched.h, linux/mount.h, linux/prctl.h, asm-generic/unistd.h
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE, _NOSUID, _NODEV = 0x1000, 0x4000, 0x40000, 2, 4
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = 442, -100, 0x8000, 1
_SET_NO_NEW_PRIVS, _CAPBSET_DROP, _NUM_CAPABILITIES = 38, 24, 64
_GIB = 1 << 30
_LIMITS = {
    resource.RLIMIT_CPU: 3600,  # seconds, of each process
    resource.RLIMIT_AS: 16 * _GIB,  # a process with PyTorch reserves several
    resource.RLIMIT_FSIZE: _GIB,
    resource.RLIMIT_NPROC: 512,  # threads count
    resource.RLIMIT_NOFILE: 1024,
    resource.RLIMIT_CORE: 0,
}
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "VIRTUAL_ENV", "PYTHONPATH")
_NAMESPACES_HELD = ("no network", "read-only file systems", "own processes only", "no privileges")


def main(argv: list[str]) -> int:
    """Set everything up, run the command, return its exit code."""
    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    command = argv[2:]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    held, why = [], _why_not()
    if not why:
        _enter_namespaces()
        held = list(_NAMESPACES_HELD)
    die_with_parent()  # again: the kernel forgets it when a process changes its user namespace
    Path(order["told"]).write_text(json.dumps({"held": held, "why_not": why}), encoding="utf-8")
    child = os.fork()  # in a new PID namespace the first child is process 1: when it ends, all others do
    if child == 0:
        _become(order, command, in_namespaces=bool(held))
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGKILL))
    signal.signal(signal.SIGALRM, lambda number, frame: os.kill(child, signal.SIGKILL))
    signal.alarm(int(order["limit_seconds"]))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) % 256


def _why_not() -> str:
    """Return why there are no namespaces to be had, or ''. Tried in a process of its own: there is no way back."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter_namespaces()
            _read_only(Path("/"), True, _AT_RECURSIVE)
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reason = pipe.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return reason


def _enter_namespaces() -> None:
    """Leave the host's network, mounts and processes.

    Raises:
        OSError: the kernel does not let us.
    """
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS | _NEW_NETWORK | _NEW_PIDS | _NEW_IPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _call("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)


def _become(order: dict[str, Any], command: list[str], *, in_namespaces: bool) -> None:
    """Turn this child into the command; never returns."""
    code = 126
    try:
        die_with_parent()
        scratch, results = Path(order["scratch"]), Path(order["results"])
        if in_namespaces:
            _close_file_systems(scratch, results)
            for number, name in enumerate(order["caches"]):
                _keep_writes_in_memory(Path(name), scratch / f".cache-{number}")
        here = Path.cwd()
        os.chdir(scratch)
        for entry in here.iterdir():  # what is named relative to it is still found
            (scratch / entry.name).symlink_to(entry)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"HOME": str(scratch), "TMPDIR": str(scratch)} | order["environment"]
        if in_namespaces:
            _drop_privileges()
        for kind, most in _LIMITS.items():
            _, ceiling = resource.getrlimit(kind)
            most = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
            resource.setrlimit(kind, (most, most))
        os.execve(command[0], command, environment)
    except OSError as error:
        print(f"the sandbox could not be set up: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _close_file_systems(scratch: Path, results: Path) -> None:
    """Make everything read-only but the results, and memory in place of scratch and /dev/shm."""
    _call("mount", os.fsencode(results), os.fsencode(results), None, _BIND, None)
    _read_only(Path("/"), True, _AT_RECURSIVE)
    _read_only(results, False, 0)
    for directory in (scratch, Path("/dev/shm")):
        if directory.is_dir():
            _call("mount", b"tmpfs", os.fsencode(directory), b"tmpfs", _NOSUID | _NODEV, b"size=1g,mode=0700")
    # Refused inside some containers, where the old view stays: names of processes, which cannot be reached.
    with contextlib.suppress(OSError):
        _call("mount", b"proc", b"/proc", b"proc", _NOSUID | _NODEV, None)


def _keep_writes_in_memory(directory: Path, memory: Path) -> None:
    """Lay memory over a cache that its readers also write into: what was there stays as it was."""
    if not directory.is_dir():
        return
    layers = {"lowerdir": directory, "upperdir": memory / "upper", "workdir": memory / "work"}
    for name in ("upperdir", "workdir"):
        layers[name].mkdir(parents=True)
    escaped = {name: re.sub(r"([\\,:])", r"\\\1", str(path)) for name, path in layers.items()}
    options = ",".join(f"{name}={path}" for name, path in escaped.items())
    _call(
        "mount", b"overlay", os.fsencode(directory), b"overlay", _NOSUID | _NODEV, os.fsencode(f"{options},userxattr")
    )


def _read_only(path: Path, is_on: bool, flags: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(_ATTR_READ_ONLY if is_on else 0, 0 if is_on else _ATTR_READ_ONLY, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, ctypes.byref(attributes), size)


def _drop_privileges() -> None:
    """Give up every capability, for good."""
    _call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(_NUM_CAPABILITIES):
        with contextlib.suppress(OSError):  # numbers this kernel does not know
            _call("prctl", _CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _call(name: str, *arguments: Any) -> None:
    """Call the C library.

    Raises:
        OSError: it says no.
    """
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, f"{name}: this system has no such call")
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
