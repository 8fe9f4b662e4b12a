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
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": files}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", files
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    files = {}  # noqa: RUF012

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        calls = {"/repos/create": self._create, "/preupload/": self._preupload, "/commit/": self._commit}
        for place, call in calls.items():
            if place in self.path:
                return self._answer(call(sent))
        return self._answer({"errors": [], "warnings": []})

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            return self._answer({"id": "me/small", "sha": "0" * 40, "siblings": []})
        return self._answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _create(self, _):
        return {"url": self._url(), "name": "me/small"}

    def _preupload(self, sent):
        wanted = [one["path"] for one in json.loads(sent)["files"]]
        return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]}

    def _commit(self, sent):
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{self._url()}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}

    def _url(self):
        return f"http://{self.headers['Host']}/me/small"

    def _answer(self, content, status=200, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        told = {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
