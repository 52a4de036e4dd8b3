"""Serve the labelling page on this machine's loopback address until it is stopped."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

import uvicorn

from modeseek.label.app import Queue, make_app


def serve(
    queue: Queue, *, port: int = 0, guidelines: str = "", announce: Callable[[str], object] = print, token: str = ""
) -> None:
    """Listen on 127.0.0.1 and say the link, which carries the token. Port 0 takes a free one.

    A given `token` and `port` let an open page go on after a restart; else each start has its own.
    """
    token = token or secrets.token_urlsafe(24)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"port: {port} cannot be had: {error.strerror}; write another, or 0 for any") from None
        port = listening.getsockname()[1]
        app = make_app(queue, token=token, guidelines=guidelines, port=port)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        announce(f"http://127.0.0.1:{port}/?token={token}")
        uvicorn.Server(config).run(sockets=[listening])
