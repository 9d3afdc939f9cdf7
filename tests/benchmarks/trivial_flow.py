"""The least that a flow can be: it says on the wire that it has begun. `python -m … HOST PORT`."""

from __future__ import annotations

import asyncio
import socket
import sys

from prefect import flow


@flow
async def trivial(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=30) as wire:
        wire.sendall(b"GET / HTTP/1.1\r\nhost: wire\r\n\r\n")
        wire.recv(64)


if __name__ == "__main__":
    asyncio.run(trivial(sys.argv[1], int(sys.argv[2])))
