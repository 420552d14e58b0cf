"""Where drawn frames are watched: a window, and MJPEG over HTTP on this computer alone."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2

from yolact_deploy.draw import draw_scale, draw_text
from yolact_deploy.errors import BackendError, OutputError
from yolact_deploy.streams.timed_frames import Image

_ESCAPE = 27
_QUALITY = [int(cv2.IMWRITE_JPEG_QUALITY), 80]
_SIDE = 0.5  # seconds for which a client without a new frame waits


class Window:
    """A window a name; Esc, ``q`` or closing it asks to end.

    Raises:
        BackendError: OpenCV has no windows, or there is no display.
    """

    def __init__(self) -> None:
        if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
            raise BackendError(
                "--show needs an OpenCV with windows, and this one has none: run 'pip install --force-reinstall "
                "--no-deps opencv-python'. It installs the same files as opencv-python-headless, and the last one wins"
            )
        # Without a display, Qt would end the process.
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise BackendError("--show needs a display, and DISPLAY is not set: use --serve-mjpeg over the network")

    def show(self, name: str, image: Image) -> bool:
        """Show a frame; False if the user wants to end."""
        cv2.imshow(name, image)
        return cv2.waitKey(1) & 0xFF not in (_ESCAPE, ord("q"))

    def close(self) -> None:
        cv2.destroyAllWindows()


class MjpegServer:
    """Serves the newest frame as ``multipart/x-mixed-replace`` on 127.0.0.1; a browser shows it.

    Args:
        port: 0 takes a free one

    Raises:
        OutputError: the port is taken or not allowed.
    """

    def __init__(self, port: int) -> None:
        self._changed = threading.Condition()
        self._data, self._number, self._closed = b"", 0, False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library's name
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                outer._serve(self.wfile)

            def log_message(self, *arguments: Any) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            raise OutputError(f"--serve-mjpeg: cannot listen on port {port} ({error}); choose another one") from error
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="yolact-mjpeg")
        self._thread.daemon = True
        self._thread.start()

    def show(self, image: Image) -> None:
        """Make a frame the newest one."""
        data = cv2.imencode(".jpg", image, _QUALITY)[1].tobytes()
        with self._changed:
            self._data, self._number = data, self._number + 1
            self._changed.notify_all()

    def _serve(self, file: Any) -> None:
        sent = 0
        while True:
            with self._changed:
                if self._number == sent and not self._closed:
                    self._changed.wait(_SIDE)
                if self._closed:
                    return
                data, number = self._data, self._number
            if number == sent:
                continue
            sent = number
            try:
                file.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
                file.write(data + b"\r\n")
            except OSError:  # the client has gone
                return

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RateDisplay:
    """Frames per second over the last second or so, and the time from decoding to drawing, as text in the corner."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=30)

    def draw(self, image: Image, born: float) -> None:
        """Write on the image in place.

        Args:
            born: ``time.perf_counter()`` when the frame had been decoded
        """
        now = time.perf_counter()
        self._times.append(now)
        span = now - self._times[0]
        rate = f"{(len(self._times) - 1) / span:.1f} fps  " if span > 0 else ""
        draw_text(image, f"{rate}{(now - born) * 1e3:.0f} ms", (0, 0), (0, 0, 0), draw_scale(image))
