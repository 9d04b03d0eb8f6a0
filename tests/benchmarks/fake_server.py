"""A server of streamed completions without a model.

python fake_server.py --port PORT
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """Answers the prompt [n] with the pieces "a ", n times; counts the requests at work."""

    daemon_threads = True
    pause = 0.01

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.at_work = self.most = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Do nothing: clients go away."""

    def count(self, change: int) -> None:
        with self.lock:
            self.at_work += change
            self.most = max(self.most, self.at_work)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (count,) = task["prompt"]
        if not count:
            self.send_error(400, "no prompt")
            return
        self.server.count(1)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(count):
            time.sleep(self.server.pause)
            self.event({"choices": [{"text": "a "}]})
        self.event({"choices": [{"text": "", "finish_reason": "length"}]})
        self.event({"choices": [], "usage": {"completion_tokens": count}})
        self.chunk(b"data: [DO")
        self.server.count(-1)
        self.chunk(b"NE]\n\n")
        self.chunk(b"")
        self.close_connection = True

    def event(self, content: object) -> None:
        self.chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


if __name__ == "__main__":
    FakeServer(int(sys.argv[-1])).serve_forever()
