"""A stand-in for a model hub: the parts of its HTTP interface that huggingface_hub calls to upload, over Git LFS."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in"


class StandInHub(ThreadingHTTPServer):
    """Repositories in memory. ``broken`` requests in a row are answered with 500."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, part: str) -> int:
        """Requests whose method and path contain ``part``."""
        return sum(part in request for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        hub = self.server
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{method} {path}")
        if hub.broken:
            hub.broken -= 1
            return self._answer(500, {"error": "the stand-in is broken"})
        if method == "PUT":
            hub.objects[path.removeprefix("/objects/")] = body
            return self._answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer(200, {"objects": [self._describe(each) for each in json.loads(body)["objects"]]})
        _, _, _, organisation, name, action, _ = path.split("/")
        files = hub.repositories[f"{organisation}/{name}"]
        if action == "preupload":
            return self._answer(
                200, {"files": [_describe_file(each["path"], files) for each in json.loads(body)["files"]]}
            )
        if action == "commit":
            for line in body.splitlines():
                self._apply(json.loads(line), files)
        return self._answer(
            200,
            {
                "id": f"{organisation}/{name}",
                "sha": "0" * 40,
                "siblings": [],
                "commitUrl": f"{hub.address}/{organisation}/{name}/commit/{'0' * 40}",
                "commitOid": "0" * 40,
            },
        )

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{repo}"}
        if repo in self.server.repositories:
            return self._answer(409, {**url, "error": "You already created this model repo"})
        self.server.repositories[repo] = {}
        self.server.visibility[repo] = wanted["visibility"]
        return self._answer(200, url)

    def _describe(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.server.address}/objects/{wanted['oid']}"}}
        return wanted if wanted["oid"] in self.server.objects else {**wanted, "actions": upload}

    def _apply(self, change: dict[str, Any], files: dict[str, bytes]) -> None:
        value = change["value"]
        if change["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif change["key"] == "lfsFile":
            files[value["path"]] = self.server.objects[value["oid"]]

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The tests look at ``requests``."""


def _describe_file(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    """How a file is to be sent, and the hash of what is there already."""
    large = path.endswith((".safetensors", ".gguf", "tokenizer.json"))
    oid = None
    if path in files:
        content = files[path]
        git_blob = b"blob %d\x00" % len(content) + content
        oid = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(git_blob).hexdigest()
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
