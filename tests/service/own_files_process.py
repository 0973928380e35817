"""What test_own_files.py checkpoints: `python -c TEXT FOLDER`, standard library only, with gcc.

It compiles a library below /tmp as torch.compile does, loads it, and keeps a log, a folder and an unlinked file open.
One word a connection to FOLDER/own.sock is answered by one line.
"""

import ctypes
import os
import socket
import subprocess
import sys

SOURCE = """
const volatile unsigned char table[1 << 20] = {[0 ... (1 << 20) - 1] = 7};
unsigned sum(void) { unsigned n = 0; for (int i = 0; i < 1 << 20; i += 4096) n += table[i]; return n; }
int twice(int value) { return 2 * value; }
"""
CACHE = "/tmp/torchinductor_root/ab"
LIBRARY = f"{CACHE}/kernel.so"


def compiled() -> ctypes.CDLL:
    os.umask(0o022)
    os.makedirs(CACHE, mode=0o700)
    with open(f"{CACHE}/kernel.c", "w") as file:
        file.write(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", LIBRARY, file.name], check=True)
    os.chmod(LIBRARY, 0o744)
    os.utime(LIBRARY, ns=(1_700_000_000_123_456_789,) * 2)
    return ctypes.CDLL(LIBRARY)


def answer(word: str) -> str:
    match word:
        case "twice":
            return str(library.twice(21))
        case "sum":  # of pages that nobody has read before
            return str(library.sum())
        case "unlinked":
            unlinked.seek(0)
            return unlinked.read()
        case "log":
            log.write("again\n")
            with open(log.name) as file:
                return repr(file.read())
        case "here":
            kept = os.stat(LIBRARY)
            names = sorted(os.listdir(CACHE)), sorted(os.listdir(folder))
            return repr((oct(kept.st_mode), kept.st_mtime_ns, oct(os.stat(CACHE).st_mode), *names))
    return "what?"


if __name__ == "__main__":
    library = compiled()
    log = open("/tmp/compile.log", "a", buffering=1)  # noqa: SIM115  for its whole life
    log.write("compiled\n")
    unlinked = open("/tmp/gone", "w+")  # noqa: SIM115
    unlinked.write("still here")
    unlinked.flush()
    os.unlink(unlinked.name)
    os.mkdir("/tmp/empty")
    folder = os.open("/tmp/empty", os.O_RDONLY)
    os.dup2(1, 2)  # the file behind stderr belongs to one sandbox
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{sys.argv[1]}/own.sock")
    listener.listen(16)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(answer(connection.recv(100).decode()).encode())
