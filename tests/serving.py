"""A local server that serves a file as the Hugging Face hub does, and does wrong what it is told to."""

import hashlib
import http.server

import numpy as np

BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` with ranges; `script` holds what to do wrong, one entry a GET, None for nothing."""

    daemon_threads = True

    def __init__(self, script=(), body=BODY):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.body, self.requests = list(script), body, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # connections that break are what is tested


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(0)

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        fault, value = (server.script.pop(0) if server.script else None) or (None, None)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if fault == "status":
            self.send_error(value)
            return
        self.answer(start)
        body = server.body[start:]
        self.wfile.write(bytes(len(body)) if fault == "wrong bytes" else body[: value if fault == "cut" else None])

    def answer(self, start):
        whole = len(self.server.body)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(whole - start))
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{SHA}"')
        self.end_headers()
