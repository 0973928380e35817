"""What test_mapped_image.py checkpoints: `python mapped_image_process.py FOLDER WEIGHTS`, standard library only.

Two processes that share memory since a fork, each with threads, a large block that it wrote, a file mapping in place of
weights, and a unix socket in FOLDER. One word a connection is answered by one line.
"""

import hashlib
import mmap
import os
import socket
import sys
import threading

BLOCK_BYTES = 64 << 20
WRITTEN_BYTES = 2 << 20


class Replica:
    def __init__(self, folder: str, weights: str) -> None:
        with open(weights, "rb") as file:
            self.weights = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        self.block = bytearray(os.urandom(1 << 20) * (BLOCK_BYTES >> 20))
        self.block[40 << 20 : 41 << 20] = bytes(1 << 20)
        self.lock = threading.Lock()
        self.name = "child" if os.fork() == 0 else "parent"
        if self.name == "child":
            self.block[: 3 << 20] = b"child" * (3 << 20)
            del self.block[BLOCK_BYTES:]
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{folder}/{self.name}.sock")
        self.listener.listen(16)

    def answer(self, word: str) -> str:
        with self.lock:
            match word:
                case "write":
                    at = 20 << 20
                    self.block[at : at + WRITTEN_BYTES] = os.urandom(WRITTEN_BYTES)
                case "grow":
                    self.block += bytes(48 << 20)
            digest = hashlib.sha256(self.block)
            digest.update(self.weights)
            return f"{self.name} {len(self.block)} {digest.hexdigest()}"

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                word = connection.recv(100).decode()
                connection.sendall(self.answer(word).encode())


if __name__ == "__main__":
    replica = Replica(*sys.argv[1:])
    for _ in range(3):
        threading.Thread(target=replica.serve).start()
