"""A Hub on the loopback for the real client of `huggingface_hub`: repos with revisions, LFS, tokens, faults on demand.

It speaks as much of the protocol as the client needs to create, upload, list and download models. What the client asked
for is in `requests`; what it uploaded is in `files(repo_id)`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from huggingface_hub import close_session, constants, hf_api


# token -> the user it belongs to, and whether it may write
OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
TOKENS = {OWNER: ("user", True), READER: ("user", False), STRANGER: ("stranger", True)}


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        """What git names it by."""
        return hashlib.sha1(b"blob %d\0%s" % (len(self.content), self.content)).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # commit -> path -> file

    def commit(self, branch: str, tree: dict[str, File]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str | None) -> str:
        sha = self.branches.get(revision or "main", revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def tree(self, revision: str | None) -> dict[str, File]:
        return self.commits[self.resolve(revision)]


@dataclass
class Fault:
    """Answer the next `times` requests that match `pattern` by `status`, or break off after `cut` bytes of the body."""

    pattern: str
    times: int = 1
    status: int | None = None
    cut: int | None = None


@dataclass
class Answer:
    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = to_json({"error": message}, status, headers)


def to_json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | (headers or {}))


class HubServer:
    """The state of the Hub, and its answers; a context manager that serves while it is open."""

    def __init__(self):
        self.lfs_suffixes: tuple[str, ...] = (".safetensors",)  # uploaded by LFS; with `()` every upload is regular
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path", and the range where one was asked for
        self.tokens: set[str | None] = set()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # a host name of their own, as the real ones have: the client must not take it for the Hub itself
        self.blob_url = f"http://localhost:{self.server.server_port}/blobs"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str | None = None) -> dict[str, bytes]:
        """path -> content of what was committed."""
        return {path: file.content for path, file in self.repos[repo_id].tree(revision).items()}

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def answer(
        self, method: str, path: str, range_: str, token: str | None, body: bytes
    ) -> tuple[Answer, Fault | None]:
        with self.lock:
            request = f"{method} {path} {range_}".rstrip()
            self.requests.append(request)
            self.tokens.add(token)
            fault = next((f for f in self.faults if f.times and re.search(f.pattern, request)), None)
            if fault is not None:
                fault.times -= 1
            try:
                if fault is not None and fault.status is not None:
                    raise Refusal(fault.status, "out of order")
                return self.dispatch(f"{method} {path}", token, body), fault
            except Refusal as refusal:
                return refusal.answer, None

    def dispatch(self, request: str, token: str | None, body: bytes) -> Answer:
        for pattern, write, act in ROUTES:
            match = re.fullmatch(pattern, request)
            if match:
                names = {name: value and unquote(value) for name, value in match.groupdict().items()}
                call = SimpleNamespace(body=body, user=TOKENS.get(token, (None, False)), **names)
                if "repo_id" in names:
                    call.repo = self.open(call.repo_id, *call.user, write)
                return act(self, call)
        raise Refusal(404, f"no such address: {request}")

    def open(self, repo_id: str, user: str | None, may_write: bool, write: bool) -> Repo:
        """The repo, if the user may see it, and write to it where that is asked for."""
        repo, is_owner = self.repos.get(repo_id), user == repo_id.split("/")[0]
        if repo is None or (repo.private and not is_owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (is_owner and may_write):
            raise Refusal(403 if user else 401, f"You don't have the rights to write to {repo_id}")
        return repo

    def who_am_i(self, call):
        if call.user[0] is None:
            raise Refusal(401, "Invalid username or password.")
        return to_json({"type": "user", "name": call.user[0], "orgs": []})

    def create_repo(self, call):
        order, (user, may_write) = json.loads(call.body), call.user
        owner = order.get("organization") or user
        if not may_write or user != owner:
            raise Refusal(403 if user else 401, f"You don't have the rights to create a model under {owner!r}")
        repo_id = f"{owner}/{order['name']}"
        address = {"url": f"{self.url}/{repo_id}", "id": repo_id}
        if repo_id in self.repos:
            return to_json(address | {"error": "You already created this model repo"}, 409)
        self.repos[repo_id] = Repo(private=order.get("visibility") == "private")
        self.repos[repo_id].commit("main", {})
        return to_json(address)

    def validate_yaml(self, call):
        return to_json({"errors": [], "warnings": []})

    def model_info(self, call):
        sha = call.repo.resolve(call.revision)
        siblings = [{"rfilename": path} for path in call.repo.commits[sha]]
        return to_json({"id": call.repo_id, "sha": sha, "private": call.repo.private, "siblings": siblings})

    def list_tree(self, call):
        def entry(path: str, file: File) -> dict:
            size = len(file.content)
            lfs = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": 130}} if file.lfs else {}
            return {"type": "file", "path": path, "size": size, "oid": file.oid} | lfs

        return to_json([entry(*item) for item in call.repo.tree(call.revision).items()])

    def list_refs(self, call):
        def entry(name: str, sha: str) -> dict:
            return {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}

        return to_json({"branches": [entry(*item) for item in call.repo.branches.items()], "converts": [], "tags": []})

    def create_branch(self, call):
        start = call.repo.resolve(json.loads(call.body or b"{}").get("startingPoint"))
        if call.revision in call.repo.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{call.revision}")
        call.repo.branches[call.revision] = start
        return to_json({})

    def preupload(self, call):
        tree = call.repo.tree(call.revision)

        def plan(path: str) -> dict:
            mode = "lfs" if path.endswith(self.lfs_suffixes) else "regular"
            known = {"oid": tree[path].etag} if path in tree else {}
            return {"path": path, "uploadMode": mode, "shouldIgnore": False} | known

        return to_json({"files": [plan(file["path"]) for file in json.loads(call.body)["files"]]})

    def lfs_batch(self, call):
        verify = {"href": f"{self.url}/{call.repo_id}.git/info/lfs/verify"}

        def plan(oid: str, size: int) -> dict:
            actions = {"upload": {"href": f"{self.blob_url}/{oid}"}, "verify": verify}
            return {"oid": oid, "size": size} | ({} if oid in self.blobs else {"actions": actions})

        return to_json({"transfer": "basic", "objects": [plan(**item) for item in json.loads(call.body)["objects"]]})

    def lfs_put(self, call):
        if hashlib.sha256(call.body).hexdigest() != call.oid:
            raise Refusal(400, "the content is not what its name says")
        self.blobs[call.oid] = call.body
        return Answer()

    def lfs_verify(self, call):
        order = json.loads(call.body)
        if len(self.blobs.get(order["oid"], b"")) != order["size"]:
            raise Refusal(404, "no such object")
        return to_json({})

    def lfs_get(self, call):
        return Answer(self.blobs[call.oid], headers={"ETag": f'"{call.oid}"', "Accept-Ranges": "bytes"})

    def commit(self, call):
        tree = dict(call.repo.tree(call.revision))
        for line in map(json.loads, call.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    raise Refusal(400, f"{value['path']} was not uploaded")
                tree[value["path"]] = File(self.blobs[value["oid"]], lfs=True)
            elif line["key"] in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                tree = {path: file for path, file in tree.items() if not (f"{path}/").startswith(f"{gone}/")}
        sha = call.repo.commit(call.revision, tree)
        return to_json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{call.repo_id}/commit/{sha}"})

    def download(self, call):
        commit = {"X-Repo-Commit": call.repo.resolve(call.revision)}
        file = call.repo.tree(call.revision).get(call.path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", **commit)
        headers = commit | {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if not file.lfs:
            return Answer(file.content, headers=headers)
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        return Answer(status=302, headers=headers | linked | {"Location": f"{self.blob_url}/{file.sha256}"})


REPO, REVISION = r"(?P<repo_id>[^/]+/[^/]+?)", r"(?P<revision>[^/]+)"
# the request, whether it writes to the repo that it names, and what it does
ROUTES = [
    (r"GET /api/whoami-v2", False, HubServer.who_am_i),
    (r"POST /api/repos/create", False, HubServer.create_repo),
    (r"POST /api/validate-yaml", False, HubServer.validate_yaml),
    (rf"GET /api/models/{REPO}(?:/revision/{REVISION})?", False, HubServer.model_info),
    (rf"GET /api/models/{REPO}/tree/{REVISION}", False, HubServer.list_tree),
    (rf"GET /api/models/{REPO}/refs", False, HubServer.list_refs),
    (rf"POST /api/models/{REPO}/branch/{REVISION}", True, HubServer.create_branch),
    (rf"POST /api/models/{REPO}/preupload/{REVISION}", True, HubServer.preupload),
    (rf"POST /api/models/{REPO}/commit/{REVISION}", True, HubServer.commit),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", True, HubServer.lfs_batch),
    (rf"POST /{REPO}\.git/info/lfs/verify", True, HubServer.lfs_verify),
    (r"PUT /blobs/(?P<oid>\w+)", False, HubServer.lfs_put),
    (r"(?:GET|HEAD) /blobs/(?P<oid>\w+)", False, HubServer.lfs_get),
    (rf"(?:GET|HEAD) /{REPO}/resolve/{REVISION}/(?P<path>.+)", False, HubServer.download),
]


class Handler(BaseHTTPRequestHandler):
    """HTTP around [`HubServer.answer`]: the body, the range, and breaking off."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        range_ = self.headers.get("Range", "")
        answer, fault = self.server.hub.answer(self.command, urlsplit(self.path).path, range_, token, body)
        if range_ and answer.status == 200:
            answer = self.part(answer, *re.fullmatch(r"bytes=(\d+)-(\d*)", range_).groups())
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content[: fault.cut] if fault else answer.content)
            self.close_connection = fault is not None

    do_HEAD = do_POST = do_PUT = do_GET

    @staticmethod
    def part(answer: Answer, start: str, end: str) -> Answer:
        total = len(answer.content)
        stop = int(end) + 1 if end else total
        headers = answer.headers | {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
        return Answer(answer.content[int(start) : stop], 206, headers)

    def log_message(self, *_):
        pass


def connect(server: HubServer, cache: Path, monkeypatch) -> None:
    """Point the client of this process to `server`, with a cache of its own and nobody logged in.

    The client reads its environment once, at import: what it made of it is replaced.
    """
    close_session()
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def environment(server: HubServer, cache: Path) -> dict[str, str]:
    """The same settings for a process yet to be started."""
    return {"HF_ENDPOINT": server.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
