"""A local server that serves a file and does wrong what it is told to, shared by the tests."""

import hashlib
import http.server
import threading

import numpy as np

BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` with ranges; `script` holds what to do wrong, one entry a request, None for nothing."""

    daemon_threads = True

    def __init__(self, script=(), ranges=True, body=BODY):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.script, self.ranges, self.requests = list(script), ranges, []
        self.released = threading.Event()

    def handle_error(self, request, client_address):
        pass  # connections that break are what is tested


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        fault, value = (server.script.pop(0) if server.script else None) or (None, None)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        whole = server.body
        body = whole[start:]
        if fault == "status":
            self.send_error(value)
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            first = start + (value if fault == "range" else 0)
            self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        if fault != "no length":
            self.send_header("Content-Length", str(len(body) + (value if fault == "length" else 0)))
        self.end_headers()
        if fault == "wrong bytes":
            body = bytes(len(body))
        if fault == "page":
            body = b"<html>please log in</html>"
        if fault in ("cut", "stall", "crawl"):
            self.wfile.write(body[:value])
            self.wfile.flush()
            while fault == "crawl" and not server.released.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()
            if fault == "stall":
                server.released.wait(20)
            return
        self.wfile.write(body)
