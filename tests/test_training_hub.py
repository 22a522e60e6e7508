import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .training_case import MODALITIES, TRUNK, save_dataset


SCRIPT = Path(__file__).parents[1] / "examples" / "train_multimodal.py"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload needs; keeps what it gets in `server.files`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        url = f"http://{self.headers['Host']}/user/model"
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": url, "id": "user/model"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitUrl": f"{url}/commit/1", "commitOid": "1", "hookOutput": ""})
        else:
            self.answer({"error": "not found"}, 404)

    def do_GET(self):
        self.answer({"id": "user/model", "sha": "0", "siblings": [], "name": "user"})

    def do_HEAD(self):
        """No file is there yet."""
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.tokens, server.created = {}, set(), None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_final_pipeline_is_pushed_and_nothing_else(tmp_path, hub):
    arguments = [
        *TRUNK, "--train_data_dir", save_dataset(tmp_path), *MODALITIES, "--max_train_steps", "1",
        "--checkpointing_steps", "1", "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id",
        "user/model", "--hub_token", "hf_secret", "--hub_private_repo",
    ]  # fmt: skip
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert f"Uploaded: http://127.0.0.1:{hub.server_port}/user/model" in result.stdout
    assert hub.created["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    assert set(hub.files) == {
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "training.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    card = hub.files["README.md"].decode()
    assert 'from_pretrained("user/model")' in card
    assert "hf_secret" not in card and "--hub_private_repo" in card
