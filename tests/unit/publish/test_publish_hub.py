"""Pushing to the Hub: the real client against a stub that speaks its protocol. Xet is off: the stub has only LFS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub", reason="extra `hub`")

from tests.fakes.hub_stub import HubStub
from tests.unit.publish.publish_case import make_run
from tunesmith.artifacts import Weights
from tunesmith.store import files

ROOT = Path(__file__).parents[3]

# The client reads its settings when it is imported, so each push is a process of its own.
PUSH = """
import json, sys, time
time.sleep = lambda seconds: None  # the client waits longer and longer before it tries again
sys.path.insert(0, sys.argv[1])
from tests.unit.publish.publish_case import make_recipe
from tunesmith.errors import TunesmithError
from tunesmith.publish import stage
from tunesmith.recipe.schema import HubTarget
from tunesmith.store.run_dir import RunDir
try:
    recipe = make_recipe(hub=HubTarget("me/${env:REPO}", private=sys.argv[3] == "private"))
    print(json.dumps(stage.run(recipe, RunDir(sys.argv[2])).to_json()))
except TunesmithError as error:
    print(json.dumps({"error": type(error).__name__, "what": error.what, "where": error.where, "do": error.do}))
"""


def start(
    stub_url: str, run: Path, tmp_path: Path, *, token: str = "hf_stub", private: bool = True
) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": stub_url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "REPO": "m1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", PUSH, str(ROOT), str(run), "private" if private else "public"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def push(stub_url: str, run: Path, tmp_path: Path, *, token: str = "hf_stub", private: bool = True) -> dict[str, Any]:
    process = start(stub_url, run, tmp_path, token=token, private=private)
    told, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    assert "hf_stub" not in told + complaints
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def test_push_again_and_replace(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with HubStub() as hub:
        release = push(hub.url, run.path, tmp_path)
        assert release.get("targets"), release
        (told,) = release["targets"]
        assert told["location"] == f"{hub.url}/me/m1" and told["private"] is True and told["num_files"] == 6
        assert hub.repos == {"me/m1": True}
        assert hub.commits == ["my-model: run"]
        manifest = json.loads(hub.files["manifest.json"])
        assert set(hub.files) == {*manifest["files"], "manifest.json"}
        assert hub.files["model.safetensors"] == (run.merged / "model.safetensors").read_bytes()
        assert b"# my-model" in hub.files["README.md"]

        again = push(hub.url, run.path, tmp_path)
        assert again["manifest_sha256"] == release["manifest_sha256"]
        assert hub.commits == ["my-model: run"]  # nothing changed, nothing committed

        hub.files |= {"model-00001-of-00002.safetensors": b"stale", "my-own.gguf": b"kept"}
        other = make_run(tmp_path / "other", weights=b"o" * 1000)
        push(hub.url, other.path, tmp_path)
        assert hub.files["model.safetensors"] == b"o" * 1000
        assert "model-00001-of-00002.safetensors" not in hub.files and hub.files["my-own.gguf"] == b"kept"


def test_a_push_that_broke_off_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with HubStub(refuse={"POST /api/models/me/m1/commit": 403}) as hub:
        assert push(hub.url, run.path, tmp_path)["error"] == "PublishError"
        assert hub.files == {}
        hub.refuse.clear()
        hub.requests.clear()
        assert "targets" in push(hub.url, run.path, tmp_path)
        assert not [request for request in hub.requests if request.startswith("PUT")]  # the weights were there
        assert set(hub.files) > {"model.safetensors", "manifest.json"}


def test_a_push_killed_between_two_files_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record = run.load(Weights)
    for number in range(9):
        name = f"extra-{number}.safetensors"
        files.write_bytes(run.merged / name, bytes([number]) * 100_000)
        record.files[name] = files.sha256(run.merged / name)
    run.save(record)
    with HubStub(seconds_per_blob=0.5) as hub:
        process = start(hub.url, run.path, tmp_path)
        limit = time.monotonic() + 60
        while len(hub.blobs) < 2:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        process.kill()
        process.communicate()
        time.sleep(0.8)  # what was under way has arrived
        num_there = len(hub.blobs)
        assert 2 <= num_there < 10 and hub.files == {} and hub.commits == []
        hub.seconds_per_blob = 0.0
        hub.requests.clear()
        assert "targets" in push(hub.url, run.path, tmp_path)
        sent = [request for request in hub.requests if request.startswith("PUT")]
        assert len(sent) == 10 - num_there, "only what was missing"
        assert len(hub.files) == 6 + 9 and len(hub.commits) == 1


def test_a_public_repository_gets_no_private_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with HubStub() as hub:
        hub.repos["me/m1"] = False
        refused = push(hub.url, run.path, tmp_path)
        assert refused["error"] == "PublishError" and "is public" in refused["what"]
        assert hub.files == {}
        assert "targets" in push(hub.url, run.path, tmp_path, private=False)


@pytest.mark.parametrize(
    ("refuse", "token", "error", "words"),
    [
        ({}, "hf_wrong_token_here", "PublishError", "(401): the token is not accepted"),
        ({"POST /api/repos": 403, "GET /api/models": 403}, "hf_stub", "PublishError", "(403): the token may not write"),
        ({"POST /api/models/me/m1/commit": 400}, "hf_stub", "PublishError", "(400)"),
        ({"POST /api/models/me/m1/preupload": 500}, "hf_stub", "PublishError", "(500)"),
        ({"PUT /_lfs": 403}, "hf_stub", "PublishError", "the Hub's storage refused (403)"),
        ({}, "", "EnvironmentProblem", "needs a token"),
    ],
)
def test_refusals_are_one_clear_error(
    tmp_path: Path, refuse: dict[str, int], token: str, error: str, words: str
) -> None:
    run = make_run(tmp_path / "run")
    with HubStub(refuse=refuse) as hub:
        found = push(hub.url, run.path, tmp_path, token=token)
    assert found["error"] == error and words in found["what"], found
    assert found["do"]
    assert hub.files == {}


def test_no_network(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with HubStub() as hub:
        url = hub.url
    found = push(url, run.path, tmp_path)
    assert found["error"] == "PublishError" and "cannot be reached" in found["what"], found
    assert files.sha256(run.merged / "config.json")
