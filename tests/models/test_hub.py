"""Models by name, from a hub that is a web server of the test's own, through the real huggingface_hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from checkpoints import prefixed, random_weights
from forcing_kv.models import find_model, save_transformer
from forcing_kv.models.checkpoint import lazy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


class Hub(ThreadingHTTPServer):
    """Serves files of repositories as the hub does; `files` is {(repo, path): bytes}."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.requests = []
        self.cut_after = None
        """Bytes after which a download breaks off."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, *, with_body):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self.send_json(path.removeprefix("/api/models/"))
        if "/resolve/" not in path:
            return self.send_error(404)
        owner, name, _, _, file = path.removeprefix("/").split("/", 4)
        content = self.server.files.get((f"{owner}/{name}", file))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if "nobody" in owner else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-").split("-")[0])
        part = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body and self.server.cut_after is not None and len(part) > self.server.cut_after:
            self.wfile.write(part[: self.server.cut_after])
            self.close_connection = True
        elif with_body:
            self.wfile.write(part)
        return None

    def send_json(self, rest):
        owner, name, *_ = rest.split("/")
        files = [file for repo, file in self.server.files if repo == f"{owner}/{name}"]
        if "/tree/" in rest:
            document = [
                {"type": "file", "path": file, "size": len(self.server.files[f"{owner}/{name}", file]), "oid": COMMIT}
                for file in files
            ]
        else:
            document = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def files(tiny_model_folder, tmp_path_factory):
    """A release of the small test model under a released name, and the components' repository."""
    config = find_model(tiny_model_folder).config
    path = tmp_path_factory.mktemp("release") / "file.pt"
    critic = {"x": torch.zeros(6_000_000)}  # the library writes a download down every 10 MB
    torch.save({"generator_ema": prefixed(random_weights(config), "model."), "critic": critic}, path)
    files = {("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt"): path.read_bytes()}
    for part in ("vae", "text_encoder", "tokenizer"):
        for file in (tiny_model_folder / part).iterdir():
            files[WAN, f"{part}/{file.name}"] = file.read_bytes()
    return files


@pytest.fixture
def hub(files):
    server = Hub(dict(files))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(hub, tmp_path, tiny_model_folder):
    """Runs the command line in a program of its own (the library reads its settings once), with small sizes."""
    config = find_model(tiny_model_folder).config

    def run(*arguments, offline=False):
        code = (
            "from dataclasses import replace\n"
            "from forcing_kv.models import released\n"
            "from forcing_kv.wan import TransformerConfig\n"
            f"config = {config!r}\n"
            "for name, model in list(released.RELEASED_MODELS.items()):\n"
            "    preset = replace(model.preset, default_policy='full', default_resolution=(96, 64))\n"
            "    released.RELEASED_MODELS[name] = replace(model, config=config, preset=preset, head_map=None)\n"
            "from forcing_kv.cli import main\n"
            "main()\n"
        )
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "FORCING_KV_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    return run


def test_by_name_downloaded_once_and_then_without_a_network(run, hub, tmp_path):
    arguments = ("generate", "a red circle", "--model", "self-forcing-1.3b", "--frames", 9)
    first = run(*arguments, "-o", "first.mp4")
    assert first.returncode == 0, first.stderr
    downloads = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
    assert any(path.endswith("self_forcing_dmd.pt") for path in downloads)
    assert any("text_encoder/model.safetensors" in path for path in downloads)

    hub.requests.clear()
    second = run(*arguments, "-o", "second.mp4", offline=True)
    assert second.returncode == 0, second.stderr
    assert not hub.requests
    assert (tmp_path / "second.mp4").read_bytes() == (tmp_path / "first.mp4").read_bytes()

    here = run("models", "self-forcing-1.3b", "raven-1.3b", offline=True).stdout.splitlines()
    assert " yes " in here[1], here
    assert " no " in here[2], here


def test_offline_and_not_there(run):
    result = run("generate", "a red circle", "--model", "self-forcing-1.3b", offline=True)
    assert result.returncode == 2
    assert result.stderr == (
        "forcing-kv: error: gdhe17/Self-Forcing: checkpoints/self_forcing_dmd.pt is not on this machine, and offline "
        "mode is on (HF_HUB_OFFLINE); get it with: hf download gdhe17/Self-Forcing checkpoints/self_forcing_dmd.pt; "
        "or give a local copy with --weights (weights) or --components (VAE, text encoder)\n"
    )


def test_gone_from_the_hub(run, hub):
    hub.files.clear()
    result = run("generate", "a red circle", "--model", "self-forcing-1.3b")
    assert result.returncode == 2
    assert "the hub refuses gdhe17/Self-Forcing: checkpoints/self_forcing_dmd.pt: 404" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_download_that_breaks_off_goes_on_where_it_was(run, hub):
    hub.cut_after = 15_000_000
    result = run("generate", "a red circle", "--model", "self-forcing-1.3b", "--frames", 9, "-o", "out.mp4")
    starts = [start for method, path, start in hub.requests if method == "GET" and path.endswith("self_forcing_dmd.pt")]
    assert starts[0] is None
    assert int(starts[1].removeprefix("bytes=").rstrip("-")) >= 10_000_000
    assert result.returncode == 0, result.stderr


def test_a_saved_folder_takes_text_encoder_and_vae_from_the_hub(run, hub, tmp_path, tiny_model_folder):
    config = find_model(tiny_model_folder).config
    preset = find_model("self-forcing-1.3b").preset
    weights = {name: lazy(tensor) for name, tensor in random_weights(config).items()}
    save_transformer(tmp_path / "mine", preset=preset, config=config, weights=weights)
    arguments = ("generate", "a red circle", "--model", "mine", "--policy", "full", "--resolution", "96x64")
    result = run(*arguments, "--frames", 9, "-o", "out.mp4")
    assert result.returncode == 0, result.stderr
    assert not any("self_forcing_dmd" in path for _, path, _ in hub.requests)
    del hub.files[WAN, "vae/diffusion_pytorch_model.safetensors"]
