"""A loopback stand-in for the Hugging Face Hub that speaks what the real client asks of it when it pushes (Xet off).

Regular files travel inside the commit, large ones by Git LFS. `files` holds what the repository would hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from typing import Any

from tests.fakes.loopback_server import LoopbackServer, QuietHandler

LFS_SUFFIXES = (".safetensors", ".bin")


class HubStub(LoopbackServer):
    """One account's Hub. `refuse` maps the start of a request (`POST /api/repos`) to the status it gets."""

    def __init__(
        self, *, token: str = "hf_stub", refuse: dict[str, int] | None = None, seconds_per_blob: float = 0.0
    ) -> None:
        self.token, self.refuse, self.seconds_per_blob = token, refuse or {}, seconds_per_blob
        self.repos: dict[str, bool] = {}  # repo id -> private
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}  # LFS objects by sha256
        self.commits: list[str] = []
        self.requests: list[str] = []
        owner = self

        class Handler(QuietHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else self._chunks()
                owner.requests.append(f"{self.command} {self.path}")
                status, document, error = owner._answer(self.command, self.path, body, self.headers)
                content = json.dumps(document).encode()
                self.send_response(status)
                if error:
                    self.send_header("X-Error-Code", error)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = handle_any

            def _chunks(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return b""
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

        super().__init__(Handler)

    def _answer(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, Any, str]:
        for start, status in self.refuse.items():
            if f"{method} {path}".startswith(start):
                return status, {"error": "refused by the test"}, ""
        if path.startswith("/_lfs/"):  # storage behind signed addresses: no token
            oid = path.removeprefix("/_lfs/")
            time.sleep(self.seconds_per_blob)
            assert hashlib.sha256(body).hexdigest() == oid
            self.blobs[oid] = body
            return 200, {}, ""
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}, ""
        return self._api(path.split("?")[0], body)

    def _api(self, path: str, body: bytes) -> tuple[int, Any, str]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, ""
        if path == "/_lfsverify":
            return 200, {}, ""
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._lfs(o) for o in json.loads(body)["objects"]]}, ""
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(preupload|commit|tree|revision)/[^/]+)?", path)
        if not match or match.group(1) not in self.repos:
            return 404, {"error": "Repository not found"}, "RepoNotFound"
        repo, action = match.groups()
        if action == "preupload":
            return 200, {"files": [self._upload_mode(file["path"]) for file in json.loads(body)["files"]]}, ""
        if action == "commit":
            return self._commit(repo, body)
        if action == "tree":
            rows = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in self.files.items()]
            return 200, rows, ""
        siblings = [{"rfilename": name} for name in self.files]
        about = {"_id": "1", "id": repo, "private": self.repos[repo], "sha": "0" * 40, "siblings": siblings, "tags": []}
        return 200, about, ""

    def _create(self, request: dict[str, Any]) -> tuple[int, Any, str]:
        repo = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
        status = 409 if repo in self.repos else 200
        self.repos.setdefault(repo, bool(request.get("private") or request.get("visibility") == "private"))
        return status, {"url": f"{self.url}/{repo}", "id": repo, "name": repo}, ""

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.blobs:
            return found
        actions = {"upload": {"href": f"{self.url}/_lfs/{wanted['oid']}"}, "verify": {"href": f"{self.url}/_lfsverify"}}
        return found | {"actions": actions}

    def _upload_mode(self, path: str) -> dict[str, Any]:
        is_large = path.endswith(LFS_SUFFIXES)
        content = self.files.get(path)
        oid = None
        if content is not None:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            oid = (hashlib.sha256(content) if is_large else git).hexdigest()
        return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, repo: str, body: bytes) -> tuple[int, Any, str]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.commits.append(value["summary"])
            elif entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del self.files[value["path"]]
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}, ""
