"""A model hub on the loopback interface, as the clients of the real one speak to it.

Folders with commits, files by commit, large files on another server, to which it redirects (as the
real one does to its CDN), hashes, the token, gated and private folders; create, preupload, LFS and
commit as `huggingface_hub` uses them. What it was asked, and with which token, is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".h5", ".bin", ".keras")  # kept as LFS


@dataclass
class Repository:
    """One folder: its branches, and the files of each commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit of a branch that holds just `files`."""
        record = repr((sorted(files.items()), self.branches.get(branch), len(self.commits)))
        oid = hashlib.sha1(record.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        return oid

    def at(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """Use it in a `with` statement.

    Attributes:
        repositories: {USER/NAME: what it holds}.
        token: That may read what is private, and write; of the user "me" alone.
        asked: (method, path, Authorization) of each request.
        created: What was asked of each new folder.
        cdn: The other server, with its own `asked`.
        change: {path of a large file's content: what the CDN sends instead}.
        faults: {part of a path: answers it instead, once}.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, is_cdn: bool = False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.token = "hf_secret"
        self.asked: list[tuple[str, str, str | None]] = []
        self.created: list[dict[str, object]] = []
        self.change: dict[str, bytes] = {}
        self.faults: dict[str, Callable[[_Handler], None]] = {}
        self.cdn = self if is_cdn else Hub(is_cdn=True)

    @property
    def address(self) -> str:
        # Two names of one machine: what is for the hub must not reach the other.
        host = "127.0.0.1" if self.cdn is not self else "localhost"
        return f"http://{host}:{self.server_port}"

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Makes a commit as a push would have."""
        return self.repositories.setdefault(name, Repository()).commit(files, branch)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.branches[branch]]

    def __enter__(self) -> Hub:
        for server in {self, self.cdn}:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in {self, self.cdn}:
            server.shutdown()
            server.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer_to("GET")

    def do_HEAD(self) -> None:
        self.answer_to("HEAD")

    def do_POST(self) -> None:
        self.answer_to("POST")

    def do_PUT(self) -> None:
        self.answer_to("PUT")

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def answer_to(self, method: str) -> None:
        size = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(size)
        hub = self.server
        hub.asked.append((method, self.path, self.headers.get("Authorization")))
        with suppress(ConnectionError):
            for part in list(hub.faults):
                if part in self.path:
                    return hub.faults.pop(part)(self)
            self.path_of, self.query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if hub.cdn is hub:
                return self.content(method)
            for pattern, answer in _ROUTES.items():
                if match := re.fullmatch(pattern, f"{method} {self.path_of}"):
                    return answer(self, *map(unquote, match.groups()))
            self.error(404, "EntryNotFound")

    # --- Answers ---

    def send(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(headers.get("size", len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, record: object, status: int = 200) -> None:
        self.send(status, json.dumps(record).encode(), Content_Type="application/json")

    def error(self, status: int, code: str = "", **headers: object) -> None:
        named = {"X_Error_Code": code} if code else {}
        self.send(status, b'{"error": "no"}', Content_Type="application/json", **named, **headers)

    @property
    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def repository(self, name: str) -> Repository | None:
        """What may be read; else it is answered why not."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.allowed):
            self.error(401 if not self.allowed else 404, "RepoNotFound")
            return None
        if found.gated and not self.allowed:
            self.error(403, "GatedRepo")
            return None
        return found

    def commit_of(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.repository(name)
        if repository is None:
            return None
        oid = repository.at(revision)
        if oid is None:
            self.error(404, "RevisionNotFound")
            return None
        return repository, oid

    # --- Reading ---

    def info(self, name: str, revision: str = "main") -> None:
        if found := self.commit_of(name, revision):
            files = found[0].commits[found[1]]
            entries = [
                {
                    "rfilename": path,
                    "size": len(content),
                    "blobId": blob_id(content),
                    **(
                        {
                            "lfs": {
                                "sha256": sha256(content),
                                "size": len(content),
                                "pointerSize": 134,
                            }
                        }
                        if path.endswith(LARGE)
                        else {}
                    ),
                }
                for path, content in files.items()
            ]
            self.json({"id": name, "sha": found[1], "siblings": entries, "private": False})

    def tree(self, name: str, revision: str) -> None:
        if found := self.commit_of(name, revision):
            files = found[0].commits[found[1]].items()
            self.json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
                    for path, content in files
                ]
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.commit_of(name, revision)
        if found is None:
            return None
        content = found[0].commits[found[1]].get(path)
        if content is None:
            return self.error(404, "EntryNotFound", X_Repo_Commit=found[1])
        if not path.endswith(LARGE):
            etag = f'"{blob_id(content)}"'
            return self.send(200, content, ETag=etag, X_Repo_Commit=found[1])
        oid = sha256(content)
        self.server.cdn.large[oid] = content
        return self.send(
            302,
            Location=f"{self.server.cdn.address}/large/{oid}?signature=1",
            X_Linked_ETag=f'"{oid}"',
            X_Linked_Size=len(content),
            X_Repo_Commit=found[1],
        )

    def content(self, method: str) -> None:
        oid = self.path_of.rpartition("/")[2]
        if method == "PUT":
            self.server.large[oid] = self.body
            return self.send(200)
        if oid not in self.server.large:
            return self.error(404)
        content = self.server.change.get(oid, self.server.large[oid])
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == f'"{oid}"':
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            there = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(206, content[start:], ETag=f'"{oid}"', Content_Range=there)
        return self.send(200, content, ETag=f'"{oid}"')

    # --- Writing ---

    def may_write(self, name: str) -> bool:
        if not self.allowed:
            self.error(401)
        elif not name.startswith("me/"):
            self.error(403)
        else:
            return True
        return False

    def create(self) -> None:
        record = json.loads(self.body)
        self.server.created.append(record)
        name = f"{record.get('organization') or 'me'}/{record['name']}"
        if self.may_write(name):
            there = name in self.server.repositories
            if not there:
                self.server.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
                private = record.get("private") or record.get("visibility") == "private"
                self.server.repositories[name].private = bool(private)
            self.json({"url": f"{self.server.address}/{name}", "id": "1"}, 409 if there else 200)

    def branch(self, name: str, branch: str) -> None:
        if self.may_write(name):
            repository = self.server.repositories[name]
            there = branch in repository.branches
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repository.branches.setdefault(branch, repository.at(start))
            self.json({}, 409 if there else 200)

    def preupload(self, name: str, revision: str) -> None:
        if self.may_write(name) and (found := self.commit_of(name, revision)):
            files = found[0].commits[found[1]]
            self.json(
                {
                    "files": [
                        {
                            "path": one["path"],
                            "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                            "shouldIgnore": False,
                            "oid": self._oid(files, one["path"]),
                        }
                        for one in json.loads(self.body)["files"]
                    ]
                }
            )

    @staticmethod
    def _oid(files: dict[str, bytes], path: str) -> str | None:
        if path not in files:
            return None
        return (sha256 if path.endswith(LARGE) else blob_id)(files[path])

    def batch(self, name: str) -> None:
        if self.may_write(name):
            record = json.loads(self.body)
            self.json(
                {
                    "transfer": "basic",
                    "objects": [
                        {
                            **one,
                            "actions": {
                                "upload": {"href": f"{self.server.cdn.address}/large/{one['oid']}"}
                            },
                        }
                        for one in record["objects"]
                    ],
                }
            )

    def commit(self, name: str, revision: str) -> None:
        if not self.may_write(name) or not (found := self.commit_of(name, revision)):
            return None
        repository, oid = found
        files = dict(repository.commits[oid])
        for line in self.body.splitlines():
            record = json.loads(line)
            key, value = record["key"], record["value"]
            if key == "header" and value.get("parentCommit") not in (None, oid):
                return self.error(412)
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                content = self.server.cdn.large[value["oid"]]
                if sha256(content) != value["oid"] or len(content) != value["size"]:
                    return self.error(422)
                files[value["path"]] = content
            elif key == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files, revision)
        url = f"{self.server.address}/{name}/commit/{made}"
        return self.json({"commitUrl": url, "commitOid": made, "hookOutput": ""})

    def yaml(self) -> None:
        self.json({"errors": [], "warnings": []})


_NAME = r"([^/]+/[^/]+)"
_ROUTES: dict[str, Callable[..., None]] = {
    rf"GET /api/models/{_NAME}": _Handler.info,
    rf"GET /api/models/{_NAME}/revision/([^/]+)": _Handler.info,
    rf"GET /api/models/{_NAME}/tree/([^/]+)": _Handler.tree,
    rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
    r"POST /api/repos/create": _Handler.create,
    rf"POST /api/models/{_NAME}/branch/([^/]+)": _Handler.branch,
    rf"POST /api/models/{_NAME}/preupload/([^/]+)": _Handler.preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    rf"POST /api/models/{_NAME}/commit/([^/]+)": _Handler.commit,
    r"POST /api/validate-yaml": _Handler.yaml,
}
