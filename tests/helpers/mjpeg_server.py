"""An MJPEG server on loopback that can be cut and that serves pictures and files as well."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
from clips import numbered


class MjpegServer:
    """``/live`` is a stream; ``/picture.jpg`` one picture. :attr:`frames` were sent in all connections.

    Args:
        cuts: numbers of frames after which the connection is cut
        pause: seconds between two frames
        last: frames after which nothing more is sent, but the connection stays
    """

    def __init__(self, cuts: tuple[int, ...] = (), pause: float = 0.0, last: int | None = None) -> None:
        self.frames = self.connections = 0
        self.cuts, self.pause, self.last = set(cuts), pause, last
        self.stopped = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library's name
                if self.path == "/picture.jpg":
                    data = cv2.imencode(".jpg", numbered(3))[1].tobytes()
                    self.send_response(200)
                    self.send_header("Content-Type", "image/jpeg")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                with contextlib.suppress(OSError):
                    outer.send(self.wfile)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def send(self, file: Any) -> None:
        self.connections += 1
        while not self.stopped.is_set():
            if self.last is not None and self.frames >= self.last:
                self.stopped.wait(30)
                return
            data = cv2.imencode(".jpg", numbered(self.frames))[1].tobytes()
            file.write(
                b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"
            )
            self.frames += 1
            if self.frames in self.cuts:
                return
            time.sleep(self.pause)


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[MjpegServer]:
    """A server that runs inside a ``with`` statement."""
    served = MjpegServer(**options)
    served.thread.start()
    try:
        yield served
    finally:
        served.stopped.set()
        served.server.shutdown()
        served.server.server_close()
        served.thread.join()
