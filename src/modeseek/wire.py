"""One request over HTTP to a server that somebody named: a key goes to no other host, and an answer has bounds."""

import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

PASSING = {408, 409, 425, 429}  # what may be over soon, beside every server's error
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Broken(ValueError):
    """An answer that is not one."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def sent(url: str, body: bytes | None, *, key: str, timeout: float, most: int) -> bytes:
    """What the server answers to `body` (None: to a GET), at most `most` bytes of it, within `timeout` seconds.

    Raises Broken beyond those bounds, and OSError (HTTPError among them) or HTTPException as urllib does.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    # A redirect could carry the key to another host; what goes to this machine goes through no proxy.
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOOPBACK else []
    opener = urllib.request.build_opener(_NoRedirect, *direct)
    said, end = bytearray(), time.monotonic() + timeout
    with opener.open(urllib.request.Request(url, body, headers), timeout=timeout) as reply:
        while part := reply.read1(1 << 16):
            said += part
            if len(said) > most:
                raise Broken(f"an answer of more than {most} bytes")
            if time.monotonic() > end:
                raise Broken(f"an answer that took longer than {timeout} seconds")
    return bytes(said)
