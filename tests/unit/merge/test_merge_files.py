"""Files that are damaged, a merge that is killed, and a target that is taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.errors import ModelError, UsageError  # noqa: E402
from tunesmith.merge import inputs, ring, standalone  # noqa: E402
from tunesmith.merge.standalone import Order  # noqa: E402
from tunesmith.model.headers import linear_layers, read_config, read_headers  # noqa: E402
from tunesmith.recipe.schema import Merge  # noqa: E402
from tunesmith.store import files  # noqa: E402

SHARDS = Merge(max_shard_gib=20_000 / 2**30)


def write_adapter(base: Path, path: Path, rank: int = 4) -> Path:
    """Write a random adapter on every linear layer, in PEFT's format."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (_, num_outputs, num_inputs) in linear_layers(read_headers(base), read_config(base)).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, num_inputs, generator=generator) * 0.1
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(num_outputs, rank, generator=generator) * 0.1
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `base` in several files, and `adapter`."""
    root = tmp_path_factory.mktemp("whole")
    base = tiny.write_model(root / "base", "llama", dtype="bfloat16", shards="20KB")
    write_adapter(base, root / "adapter")
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def order(root: Path, **more: object) -> Order:
    settings = {"base": str(root / "base"), "adapters": (str(root / "adapter"),), "target": str(root / "out")}
    return Order(**(settings | {"settings": SHARDS} | more))  # type: ignore[arg-type]


def flip_a_bit(file: Path, place: int = -100) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def nothing_is_left(root: Path) -> bool:
    return not (root / "out").exists() and not list(root.glob(".out*"))


@pytest.mark.parametrize("damage", ["cut short", "longer", "header", "missing"])
def test_a_broken_file_is_named(root: Path, damage: str) -> None:
    file = sorted((root / "base").glob("*.safetensors"))[1]
    content = file.read_bytes()
    if damage == "cut short":
        file.write_bytes(content[:-10])
    elif damage == "longer":
        file.write_bytes(content + b"\0" * 16)
    elif damage == "header":
        file.write_bytes(content[:8] + content[8:].replace(b'"data_offsets":[', b'"data_offsets":[9', 1))
    else:
        file.unlink()
    with pytest.raises(ModelError) as caught:
        standalone.run(order(root))
    assert file.name in str(caught.value)
    assert nothing_is_left(root)


@pytest.mark.parametrize("known_by", ["manifest", "cache", "note", "pipeline"])
def test_a_flipped_bit_is_found_where_a_hash_is_known(root: Path, known_by: str) -> None:
    base = root / "base"
    file = sorted(base.glob("*.safetensors"))[1]
    digest = files.sha256(file)
    cache = files.HashCache(root / "hashes.json")
    cache.sha256(file)
    if known_by == "manifest":
        (base / "manifest.json").write_text(json.dumps({"files": {file.name: digest}}))
    elif known_by == "cache":
        blob = root / "blobs" / digest
        blob.parent.mkdir()
        file.rename(blob)
        file.symlink_to(blob)
    elif known_by == "note":
        note = base / ".cache/huggingface/download" / f"{file.name}.metadata"
        note.parent.mkdir(parents=True)
        note.write_text(f"{'0' * 40}\n{digest}\n{time.time()}\n")
    before = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a bad disk leaves the time alone
    known = cache.known if known_by == "pipeline" else (lambda file: None)
    with pytest.raises(ModelError, match="the file is damaged: its SHA-256 is") as caught:
        inputs.verify(base, known)
    assert file.name in str(caught.value)
    if known_by != "pipeline":
        with pytest.raises(ModelError, match="damaged"):
            standalone.run(order(root))
        assert nothing_is_left(root)
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert inputs.verify(base, known) == 1


def test_a_merged_model_says_what_it_is(root: Path) -> None:
    path, merged = standalone.run(order(root))
    manifest = json.loads((path / "manifest.json").read_text())
    assert {p.name for p in path.iterdir()} == {*manifest["files"], "manifest.json"}
    assert all(files.sha256(path / name) == digest for name, digest in manifest["files"].items())
    assert len(list(path.glob("*.safetensors"))) > 3 and "model.safetensors.index.json" in merged.files
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= set(
        merged.files
    )
    again = standalone.run(order(root))[1]
    assert again.files == merged.files and not again.seconds, "what is done is not done again"
    # It is a base with hashes of its own.
    flip_a_bit(sorted(path.glob("*.safetensors"))[0])
    with pytest.raises(ModelError, match=r"in manifest\.json beside it"):
        standalone.run(order(root, base=str(path), target=str(root / "second")))
    with pytest.raises(UsageError, match="files have changed"):
        standalone.run(order(root))


def test_a_target_that_is_taken_is_left_alone(root: Path) -> None:
    (root / "out").mkdir()
    (root / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not what this command makes"):
        standalone.run(order(root))
    assert (root / "out" / "thesis.txt").read_text() == "years of work"
    (root / "out" / "thesis.txt").unlink()
    assert standalone.run(order(root))[0] == root / "out"


def merge_command(root: Path, target: str) -> list[str]:
    paths = ["--base", str(root / "base"), "--adapter", str(root / "adapter"), "--out", str(root / target)]
    return [sys.executable, "-m", "tunesmith", "merge", *paths, "--max-shard-gib", str(SHARDS.max_shard_gib), "--json"]


def test_killed_and_started_again_gives_the_same_bytes(root: Path) -> None:
    """The real command, `kill -9` while files are being written."""
    base = tiny.write_model(root / "base", "llama", dtype="bfloat16", shards="20KB", seed=3)
    _, undisturbed = standalone.run(order(root, base=str(base), target=str(root / "undisturbed")))
    staging = root / ".out.merging"
    child = subprocess.Popen(
        merge_command(root, "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_slowly(root)
    )
    limit = time.monotonic() + 60
    while len(list(staging.glob("model-*.safetensors"))) < 4 and time.monotonic() < limit:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    child.kill()
    child.wait()
    noted = json.loads((staging / "progress.json").read_text())["files"]
    assert noted and not (root / "out").exists()
    written = {name: (staging / name).stat().st_mtime_ns for name in noted}
    flip_a_bit(staging / sorted(noted)[0])  # what was finished, and is not as it was left, is made again
    path, merged = standalone.run(order(root))
    assert merged.files == undisturbed.files
    for name in (*merged.files, "manifest.json"):
        assert (path / name).read_bytes() == (root / "undisturbed" / name).read_bytes(), name
    kept = [name for name in noted if (path / name).stat().st_mtime_ns == written[name]]
    assert sorted(kept) == sorted(noted)[1:]
    assert not staging.exists()


def _slowly(root: Path) -> dict[str, str]:
    """Return an environment in which every file takes a moment, so that a kill falls between them."""
    (root / "sitecustomize.py").write_text(
        "import os, time\n_fsync = os.fsync\ndef fsync(descriptor):\n    time.sleep(0.05)\n    _fsync(descriptor)\n"
        "os.fsync = fsync\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}


def test_another_job_does_not_take_over_what_one_left(root: Path) -> None:
    staging = root / ".out.merging"
    staging.mkdir()
    (staging / "key").write_text("another job")
    (staging / "model-00001-of-00009.safetensors").write_bytes(b"something else")
    path, merged = standalone.run(order(root))
    assert set(merged.files) == {p.name for p in path.iterdir()} - {"manifest.json"}


def test_a_full_disk_is_told_and_the_same_command_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.errors import MergeError

    real, calls = os.pwrite, []

    def pwrite(descriptor: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        return real(descriptor, content, offset)

    monkeypatch.setattr(ring.os, "pwrite", pwrite)
    with pytest.raises(MergeError, match="No space left on device"):
        standalone.run(order(root))
    assert json.loads((root / ".out.merging" / "progress.json").read_text())["files"]
    monkeypatch.undo()
    assert standalone.run(order(root))[0].is_dir()


def test_the_verb_tells_people_and_machines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.cli.app import main

    words = merge_command(root, "out")[3:]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and document["path"] == str(root / "out") and set(document["seconds"]) >= {"write", "prove"}
    assert document["files"] == json.loads((root / "out" / "manifest.json").read_text())["files"]
    assert main([word for word in words if word != "--json"]) == 0
    told = capsys.readouterr().out
    assert "same token" in told and "of what the adapter does" in told and "logits on probe prompts" in told
    assert main([*words[:-1], "--weight", "1", "--weight", "2"]) == 2
    assert "one --weight for each --adapter" in capsys.readouterr().err
    assert main(["merge", "--adapter", str(root / "base"), "--out", str(root / "other")]) == 5
    assert "is no adapter" in capsys.readouterr().err and not (root / "other").exists()
