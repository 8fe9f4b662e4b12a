"""A hub in miniature: the few calls that an upload by huggingface_hub makes, files kept in memory."""

import base64
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def hub():
    """Serve until the block ends; give the address, and the dict that fills with bytes by file name."""
    files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", files
    finally:
        server.shutdown()
        server.server_close()


def _handler(files):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.endswith("/repos/create"):
                self._answer({"url": "http://hub/me/small", "name": "me/small"})
            elif "/preupload/" in self.path:
                wanted = [one["path"] for one in json.loads(sent)["files"]]
                answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
                self._answer({"files": answer})
            elif "/commit/" in self.path:
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"http://hub/me/small/commit/{'0' * 40}"
                self._answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
            elif self.path.endswith("/validate-yaml"):
                self._answer({"errors": [], "warnings": []})
            else:
                self._answer({"error": self.path}, 500)

        def do_GET(self):
            if self.path.startswith("/api/models/"):
                self._answer({"id": "me/small", "sha": "0" * 40, "siblings": []})
            else:
                self._answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def _answer(self, content, status=200, headers=None):
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {
                "Content-Length": len(body),
                "Content-Type": "application/json",
                **(headers or {}),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler
