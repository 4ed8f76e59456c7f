"""Publishing to S3: the real client, a server that speaks the protocol (moto), and a proxy that fails between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.faulty_proxy import FaultyProxy
from tests.unit.publish.publish_case import make_recipe, make_run
from tunesmith.artifacts import Release, Weights
from tunesmith.errors import EnvironmentProblem, PublishError
from tunesmith.publish import s3, stage
from tunesmith.recipe.schema import S3Target
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

boto3 = pytest.importorskip("boto3", reason="extra `s3`")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed")

ROOT = Path(__file__).parents[3]
PART = 5 << 20  # the smallest that S3 takes
WHERE = "models/my-model/"

PUSH = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.unit.publish.publish_case import make_recipe
from tunesmith.publish import s3, stage
from tunesmith.recipe.schema import S3Target
from tunesmith.store.run_dir import RunDir
s3._PART_BYTES = 5 << 20
stage.run(make_recipe(s3=S3Target("s3://bucket/models", sys.argv[3])), RunDir(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An empty bucket, and credentials for it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import httpx

    httpx.post(f"{server}/moto-api/reset")
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="bucket")
    return client


def contents(store: Any) -> dict[str, bytes]:
    keys = [found["Key"] for found in store.list_objects_v2(Bucket="bucket").get("Contents", [])]
    return {key: store.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}


def push(run: RunDir, url: str) -> Release:
    return stage.run(make_recipe(s3=S3Target("s3://bucket/models", url)), run)


def test_push_again_and_replace(store: Any, server: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with FaultyProxy(server) as proxy:
        (told,) = push(run, proxy.url).targets
        assert told["location"] == "s3://bucket/models/my-model" and told["num_files"] == 6
        there = contents(store)
        manifest = json.loads(there[f"{WHERE}manifest.json"])
        assert set(there) == {f"{WHERE}{name}" for name in [*manifest["files"], "manifest.json"]}
        assert there[f"{WHERE}model.safetensors"] == (run.merged / "model.safetensors").read_bytes()
        written = [request for request in proxy.requests if request.startswith("PUT")]
        assert written[-1] == f"PUT /bucket/{WHERE}manifest.json", "the manifest comes last"

        proxy.requests.clear()
        (again,) = push(run, proxy.url).targets
        assert again["unchanged"] is True and again["num_bytes_sent"] == 0
        assert {request.split()[0] for request in proxy.requests} == {"GET", "HEAD"}

        store.put_object(Bucket="bucket", Key=f"{WHERE}notes.txt", Body=b"someone's own")
        other = make_run(tmp_path / "other", weights=b"o" * 1000)
        (other.merged / "tokenizer.json").unlink()
        record = other.load(Weights)
        del record.files["tokenizer.json"]
        other.save(record)
        proxy.requests.clear()
        push(other, proxy.url)
        there = contents(store)
        assert there[f"{WHERE}model.safetensors"] == b"o" * 1000 and there[f"{WHERE}notes.txt"] == b"someone's own"
        assert f"{WHERE}tokenizer.json" not in there, "a file of the earlier release is gone"
        changing = [request for request in proxy.requests if not request.startswith(("GET", "HEAD"))]
        assert changing[0] == f"DELETE /bucket/{WHERE}manifest.json", "no manifest names files that are being replaced"


def test_a_push_killed_in_the_middle_of_a_file_goes_on(store: Any, server: str, tmp_path: Path) -> None:
    weights = b"".join(bytes([n]) * PART for n in range(7)) + b"end"
    run = make_run(tmp_path / "run", weights=weights)
    with FaultyProxy(server, delay_seconds=0.15) as proxy:
        command = [sys.executable, "-c", PUSH, str(ROOT), str(run.path), proxy.url]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
        limit = time.monotonic() + 60
        while sum("partNumber" in request for request in proxy.requests) < 3:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.4)  # what was under way has been answered
        num_sent = len({request for request in proxy.requests if "partNumber" in request})
        assert 3 <= num_sent < 8
        assert f"{WHERE}manifest.json" not in contents(store)
        proxy.requests.clear()
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, check=True, timeout=60)
        assert len({r for r in proxy.requests if "partNumber" in r}) == 8 - num_sent, "only the missing parts"
    there = contents(store)
    assert there[f"{WHERE}model.safetensors"] == weights and f"{WHERE}manifest.json" in there
    assert not store.list_multipart_uploads(Bucket="bucket").get("Uploads")
    assert json.loads(run.unfinished_uploads.read_text()) == {}


def test_an_upload_of_other_weights_is_given_up(
    store: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", PART)
    run = make_run(tmp_path / "run", weights=b"a" * (2 * PART))
    with FaultyProxy(server, lambda request: 403 if "partNumber=2" in request else None) as proxy:
        with pytest.raises(PublishError, match="refused"):
            push(run, proxy.url)
        proxy.fault = lambda request: None
        again = make_run(tmp_path / "run", weights=b"b" * (2 * PART))
        push(again, proxy.url)
    assert contents(store)[f"{WHERE}model.safetensors"] == b"b" * (2 * PART)
    assert not store.list_multipart_uploads(Bucket="bucket").get("Uploads")


def test_a_store_that_errs_now_and_then(
    store: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    left = {"PUT /bucket/models/my-model/model.safetensors": [500, 0, 503], "GET /bucket": [500]}

    def fault(request: str) -> int | None:
        return next((errors.pop(0) for start, errors in left.items() if errors and request.startswith(start)), None)

    with FaultyProxy(server, fault) as proxy:
        push(make_run(tmp_path / "run"), proxy.url)
    assert not any(left.values()), "every fault was met"
    assert f"{WHERE}manifest.json" in contents(store)


def test_a_store_that_stays_broken_loses_nothing(
    store: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits longer and longer
    run = make_run(tmp_path / "run")

    def broken(request: str) -> int | None:
        return 500 if "tokenizer" in request and request.startswith("PUT") else None

    with FaultyProxy(server, broken) as proxy:
        with pytest.raises(PublishError, match="InternalError") as raised:
            push(run, proxy.url)
        assert "not sent again" in raised.value.do
        assert f"{WHERE}manifest.json" not in contents(store)
        proxy.fault = lambda request: None
        proxy.requests.clear()
        push(run, proxy.url)
        sent = [request for request in proxy.requests if request.startswith("PUT")]
    assert sent == [f"PUT /bucket/{WHERE}{name}" for name in ("tokenizer.json", "README.md", "manifest.json")]


@pytest.mark.parametrize(
    ("status", "words"), [(403, "the credentials may not do this"), (404, "there is no such bucket")]
)
def test_refusals_are_one_clear_error(store: Any, server: str, tmp_path: Path, status: int, words: str) -> None:
    def refused(request: str) -> int | None:
        return status if request.startswith("HEAD") and status == 403 else None

    bucket = "bucket" if status == 403 else "nobody-made-it"
    with FaultyProxy(server, refused) as proxy, pytest.raises(PublishError, match=words) as raised:
        stage.run(make_recipe(s3=S3Target(f"s3://{bucket}/models", proxy.url)), make_run(tmp_path / "run"))
    assert raised.value.do and "planted-secret-key" not in raised.value.render()


def test_credentials_that_the_store_does_not_know(store: Any, server: str, tmp_path: Path) -> None:
    import httpx

    httpx.post(f"{server}/moto-api/reset-auth", content=b"0")  # from now on signatures are checked
    try:
        with pytest.raises(PublishError, match="the access key is not known there"):
            push(make_run(tmp_path / "run"), server)
    finally:
        httpx.post(f"{server}/moto-api/reset-auth", content=b"inf")


def test_no_credentials(store: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(EnvironmentProblem, match="needs credentials"):
        push(make_run(tmp_path / "run"), server)


def test_nobody_answers(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(PublishError, match="cannot be reached"):
        push(make_run(tmp_path / "run"), "http://127.0.0.1:9")


def test_a_manifest_of_someone_else_is_never_replaced(store: Any, server: str, tmp_path: Path) -> None:
    store.put_object(Bucket="bucket", Key=f"{WHERE}manifest.json", Body=b'{"name": "my web app"}')
    with pytest.raises(PublishError, match="not ours"):
        push(make_run(tmp_path / "run"), server)
    assert contents(store) == {f"{WHERE}manifest.json": b'{"name": "my web app"}'}


def test_a_damaged_object_is_sent_again(store: Any, server: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    push(run, server)
    store.put_object(Bucket="bucket", Key=f"{WHERE}config.json", Body=b"{}")
    (told,) = push(run, server).targets
    assert told["unchanged"] is False and told["num_bytes_sent"] < 1000
    assert contents(store)[f"{WHERE}config.json"] == (run.merged / "config.json").read_bytes()
    assert files.sha256(run.merged / "config.json")
