"""The init of one sandbox: makes the namespaces, mounts what it is told, starts and reaps processes.

Run as `python -I -S sandbox_init.py FD CONFIG`, standard library only, so that it starts in milliseconds. FD is a unix
stream socket to the node agent: newline JSON, one reply a request, in order, and `{"exited": pid, "status": n}` lines
between them. A line `{"host_pid": n}` tells the init's id outside. When the socket closes, because the agent let go or died, the init ends and with it the whole sandbox.

The parent process of the init stays outside the PID namespace, waits, and passes the exit on.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import stat
import sys
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH, AT_RECURSIVE, AT_FDCWD = 4, 0x8000, -100
ROOT = "/run/woodfrog"
WEIGHT_FS = b"woodfrog"  # what its mounts are called in the table of mounts
HIDDEN = (
    "/tmp/",
    "/run/",
    "/dev/shm/",
)  # the sandbox has its own; code that lies there is kept visible
FOLDERS = ("weights", "snapshot", "replica", "work", "dump")


def check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encode = [s.encode() if s is not None else None for s in (source, target, kind)]
    check(
        LIBC.mount(*encode, ctypes.c_ulong(flags), data.encode() if data else None),
        f"mount {kind or source} on {target}",
    )


class MountAttr(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("set", "clear", "propagation", "userns_fd")]


def set_read_only(target: str, flags: int) -> None:
    attr = MountAttr(set=MS_RDONLY)
    check(
        LIBC.syscall(
            SYS_MOUNT_SETATTR,
            AT_FDCWD,
            target.encode(),
            flags,
            ctypes.byref(attr),
            ctypes.sizeof(attr),
        ),
        f"make {target} read-only",
    )


def open_tree(path: str) -> int:
    flags = OPEN_TREE_CLONE | AT_RECURSIVE
    return check(LIBC.syscall(SYS_OPEN_TREE, AT_FDCWD, path.encode(), flags), f"keep {path}")


def move_mount(fd: int, target: str) -> None:
    flags = MOVE_MOUNT_F_EMPTY_PATH
    check(
        LIBC.syscall(SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, target.encode(), flags),
        f"mount on {target}",
    )


def weight_mounts() -> list[bytes]:
    """Where weight_fs shows its trees: this node's, and those of others on the machine."""
    with open("/proc/self/mountinfo", "rb") as file:
        rows = [line.split(b" ") for line in file.read().splitlines()]
    paths = [row[4] for row in rows if row[row.index(b"-") + 2] == WEIGHT_FS]
    # The kernel writes space, tab, newline and backslash as three octal digits.
    return [re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), p) for p in paths]


def prepare(config: dict[str, Any]) -> None:
    """Mounts: the host's tree read-only, own /proc, /dev/shm, /tmp and /run; the agent's trees come in later by descriptor."""
    with open(config["kdat"], "rb") as file:
        kdat = file.read()
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    for path in weight_mounts():  # a copy would outlive the mount itself
        LIBC.umount2(path, MNT_DETACH)
    set_read_only("/", AT_RECURSIVE)
    kept = [(path, open_tree(path)) for path in config["keep"] if path.startswith(HIDDEN)]
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64m")
    for name in FOLDERS:
        os.makedirs(f"{ROOT}/{name}")
    for path, fd in kept:
        os.makedirs(path, exist_ok=True)
        move_mount(fd, path)
        os.close(fd)
    with open("/run/criu.kdat", "wb") as file:  # CRIU's probe of the kernel, taken once
        file.write(kdat)
    socket.sethostname(config["hostname"])


def place(request: dict[str, Any], fd: int) -> dict[str, Any]:
    """Mounts the detached mount `fd` at request["target"]."""
    target = request["target"]
    try:
        move_mount(fd, target)
    finally:
        os.close(fd)
    if request["read_only"]:
        set_read_only(target, 0)
    return {}


def hide(request: dict[str, Any]) -> dict[str, Any]:
    """Each of request["paths"] is an empty device from now on, for whoever opens it."""
    for path in request["paths"]:
        mount("/dev/null", path, None, MS_BIND)
    return {}


def fill(request: dict[str, Any]) -> dict[str, Any]:
    """Puts request["files"], each [path, mode, size, mtime_ns], into /tmp; their bytes are in request["source"].

    Here, so that the memory that they take is the sandbox's.
    """
    source = os.open(request["source"], os.O_RDONLY)
    try:
        offset = 0
        for path, mode, size, mtime_ns in request["files"]:
            target = f"/tmp/{path}"
            if stat.S_ISDIR(mode):
                os.makedirs(target, exist_ok=True)
                os.chmod(target, stat.S_IMODE(mode))
                continue
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                end = offset + size
                while offset < end:
                    sent = os.sendfile(fd, source, offset, end - offset)
                    if not sent:
                        raise OSError(f"{request['source']} is too short for {target!r}")
                    offset += sent
                os.fchmod(fd, stat.S_IMODE(mode))
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)
    finally:
        os.close(source)
    return {}


def spawn(request: dict[str, Any]) -> dict[str, Any]:
    """Starts request["argv"] in its own session, with no descriptor but /dev/null and, for stderr, request["stderr"]."""
    if request.get("last_pid"):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(request["last_pid"]))
    pid = os.fork()
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for signum in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, signal.SIG_DFL)
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            errors = request.get("stderr")
            stderr = (
                os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if errors else null
            )
            for source, target in ((null, 0), (null, 1), (stderr, 2)):
                os.dup2(source, target)
            os.closerange(3, 4096)
            os.chdir(request.get("cwd", "/"))
            os.execve(request["argv"][0], request["argv"], request["env"])
        except OSError as error:
            os.write(2, f"cannot start {request['argv'][0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    return {"pid": pid}


def signal_all(request: dict[str, Any]) -> dict[str, Any]:
    """Signals every process of the sandbox but the init."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, request["signum"])
    return {}


def serve(agent: socket.socket) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    for fd in (read, write, agent.fileno()):
        os.set_inheritable(fd, False)
    buffer = b""
    fds: list[int] = []
    while True:
        ready, _, _ = select.select([agent.fileno(), read], [], [])
        if read in ready:
            os.read(read, 4096)
        reap(agent)
        if agent.fileno() not in ready:
            continue
        try:
            data, received, _, _ = socket.recv_fds(agent, 65536, 8)
        except ConnectionResetError:
            return
        if not data:
            return
        fds.extend(received)
        buffer += data
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            send(agent, answer(json.loads(line), fds))


def answer(request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    try:
        match request["op"]:
            case "place":
                return {"ok": True, **place(request, fds.pop(0))}
            case "hide":
                return {"ok": True, **hide(request)}
            case "fill":
                return {"ok": True, **fill(request)}
            case "spawn":
                return {"ok": True, **spawn(request)}
            case "signal":
                return {"ok": True, **signal_all(request)}
            case other:
                return {"ok": False, "message": f"unknown operation {other!r}"}
    except OSError as error:
        return {"ok": False, "message": str(error)}


def reap(agent: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        send(agent, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})


def send(agent: socket.socket, message: dict[str, Any]) -> None:
    try:
        agent.sendall(json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        os._exit(1)


def main() -> None:
    agent = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    for path in config["cgroups"]:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    check(
        LIBC.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET),
        "make namespaces",
    )
    child = os.fork()
    if child:
        send(agent, {"host_pid": child})
        agent.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        prepare(config)
    except OSError as error:
        send(agent, {"ok": False, "message": str(error)})
        os._exit(1)
    send(agent, {"ok": True})
    serve(agent)
    os._exit(0)


main()
