"""A web server for a folder, on this machine only."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Quiet(http.server.SimpleHTTPRequestHandler):
    isolated = False

    def end_headers(self) -> None:
        if self.isolated:  # what threads in WebAssembly need
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *values: Any) -> None:
        pass


class _Isolated(_Quiet):
    isolated = True


@contextlib.contextmanager
def folder_served(folder: Path, *, isolated: bool = False) -> Iterator[str]:
    """Yield the address of a server of the folder, without a slash at its end."""
    handler = functools.partial(_Isolated if isolated else _Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
