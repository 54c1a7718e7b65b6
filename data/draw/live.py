"""Show frames and their masks in a browser while inference runs: a page that this machine serves.

The page is served only on 127.0.0.1, by the standard library. A separate thread draws, each time the newest frame, so
inference never waits: a slow browser sees fewer frames.
"""

import io
import json
import os
import sys
import threading
import time
import webbrowser
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

import cli
from data.draw import render
from data.labels import DEFAULT_SPACE, LabelSpace
from data.videos.overlays import narrowed

WIDTH = 960  # pixels of a frame, at most
BOUNDARY = b"--frame\r\n"
REPEAT = 0.5  # seconds without a new picture, then the last is sent again: Chrome shows a picture when the next comes
PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Live panoptic segmentation</title>
<link rel="icon" href="data:,">
<style>body{background:#111;color:#eee;font:16px system-ui;margin:1em;text-align:center}img{max-width:100%}</style>
<img src="stream" alt="The newest frame, and the frame under its mask"><p role="status" id="state">waiting</p>
<script>
const tell = async () => {
  const state = await fetch("state").then(answer => answer.json()).catch(() => null);
  document.getElementById("state").textContent =
    state ? `frame ${state.frames}, ${state.rate.toFixed(1)} frames/s` : "ended";
  if (state) setTimeout(tell, 500);
};
tell();
</script></html>"""


def opened(colorblind: bool, space: LabelSpace) -> "Live":
    """A page, open in the browser. Raises UsageError where no port can be had."""
    try:
        live = Live(colorblind, space)
    except OSError as error:
        raise cli.UsageError(f"--live: no page can be served on this machine ({error})") from None
    live.open()
    return live


class Live:
    """The page: call `show` for each frame, then `close`. `address` is its URL."""

    def __init__(self, colorblind: bool = False, space: LabelSpace = DEFAULT_SPACE):
        self.look = {"colorblind": colorblind, "space": space}
        self.new = threading.Condition()
        self.waiting: tuple | None = None  # the newest frame, not drawn yet
        self.picture: bytes | None = None
        self.frames, self.times, self.closed = 0, deque(maxlen=20), False
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"live": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        for work in (self.server.serve_forever, self._draw):
            threading.Thread(target=work, daemon=True).start()

    def open(self) -> None:
        """Print the address of the page, and open it if the machine has a display."""
        print(f"live: {self.address}", flush=True)
        if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(self.address)

    def show(self, image: np.ndarray, semantic: np.ndarray, track: np.ndarray) -> None:
        """The next frame uint8 (H, W, 3) with its classes and ids (H, W). Returns at once."""
        with self.new:
            self.waiting = image, semantic, track
            self.frames += 1
            self.times.append(time.monotonic())
            self.new.notify_all()

    def close(self) -> None:
        with self.new:
            self.closed = True
            self.new.notify_all()
        self.server.shutdown()
        self.server.server_close()

    @property
    def state(self) -> dict[str, float]:
        """Number of frames so far, and frames a second over the last 20."""
        seconds = self.times[-1] - self.times[0] if len(self.times) > 1 else 0
        return {"frames": self.frames, "rate": (len(self.times) - 1) / seconds if seconds else 0.0}

    def next_picture(self, before: bytes | None) -> bytes | None:
        """Wait for another JPEG than `before`; after REPEAT return the old one. None when the page is closed."""
        with self.new:
            self.new.wait_for(lambda: self.closed or self.picture is not before, REPEAT if before else None)
            return None if self.closed else self.picture

    def _draw(self) -> None:
        while True:
            with self.new:
                self.new.wait_for(lambda: self.closed or self.waiting is not None)
                if self.closed:
                    return
                frame, self.waiting = self.waiting, None
            image, semantic, track = narrowed(WIDTH, *frame)
            both = [image, render.overlay(image, semantic, track, **self.look)]
            wide = image.shape[1] > image.shape[0]
            picture = io.BytesIO()
            Image.fromarray(np.concatenate(both, axis=0 if wide else 1)).save(picture, "JPEG", quality=80)
            with self.new:
                self.picture = picture.getvalue()
                self.new.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Report nothing: a browser may leave in the middle of an answer."""


class _Handler(BaseHTTPRequestHandler):
    live: Live

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer("text/html; charset=utf-8", PAGE)
        elif self.path == "/state":
            self._answer("application/json", json.dumps(self.live.state).encode())
        elif self.path == "/stream":
            self._stream()
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        """Send pictures, each in place of the last, until the page or the browser is closed."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        self.wfile.write(BOUNDARY)
        picture = None
        while (picture := self.live.next_picture(picture)) is not None:
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
            # Send the boundary at once: a browser shows a picture only when it has seen its end
            self.wfile.write(head + picture + b"\r\n" + BOUNDARY)
