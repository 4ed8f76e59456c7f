"""Checkpoints: whole or not there, whatever is done to them; read by any number of ranks."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from tunesmith.train.checkpoint import (  # noqa: E402
    SCHEMA_VERSION,
    Checkpoints,
    load_optimizer_tensors,
    load_state,
    load_weights,
)
from tunesmith.train.checkpoint_files import Part  # noqa: E402
from tunesmith.train.optim import fill_optimizer, optimizer_tensors  # noqa: E402
from tunesmith.train.snapshot import Snapshot, free_memory_bytes  # noqa: E402

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
SHAPES = {"matrix": (7, 5), "wide": (3, 11), "row": (1, 6), "vector": (13,), "number": ()}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torch.distributed.fsdp", "safetensors.torch", "tunesmith.train.checkpoint"])


def weights_of(step: int) -> dict[str, Any]:
    return {name: torch.full(shape, float(step)) for name, shape in SHAPES.items()}


def optimizer_of(step: int) -> dict[str, Any]:
    moments = {f"{name}//exp_avg": torch.full(shape, step + 0.5) for name, shape in SHAPES.items()}
    return moments | {f"{name}//step": torch.tensor(float(step)) for name in SHAPES}


def save(checkpoints: Checkpoints, step: int, *, best: bool = False) -> bool:
    checkpoints.save(step, weights_of(step), optimizer_of(step), {"step": step, "note": "ü"}, best=best)
    return checkpoints.wait()


def assert_holds(checkpoint: Path | None, step: int) -> None:
    assert checkpoint is not None and checkpoint.name == f"step-{step:06d}"
    loaded = weights_of(-1)
    load_weights(checkpoint, loaded)
    optimizer = load_optimizer_tensors(checkpoint)
    for found, wanted in ((loaded, weights_of(step)), (optimizer, optimizer_of(step))):
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert load_state(checkpoint) == {"step": step, "note": "ü"}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "er", identity="i", keep=2)
    assert checkpoints.newest() is None and checkpoints.best() is None
    assert save(checkpoints, 7)
    assert names(tmp_path / "deep" / "er") == ["step-000007"]
    assert names(tmp_path / "deep" / "er" / "step-000007") == sorted(FILES)
    assert_holds(Checkpoints(tmp_path / "deep" / "er", identity="i", keep=2).newest(), 7)


def test_number_formats_and_nothing_at_all(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    wanted = {
        "flags": torch.tensor([True, False, True]),
        "bfloat16": torch.randn(3, 5, dtype=torch.bfloat16),
        "int8": torch.arange(7, dtype=torch.int8),
        "float32": torch.randn(2, 3).T,  # not contiguous
        "float64": torch.randn(5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "int64": torch.tensor(1 << 40),
    }
    checkpoints.save(1, wanted, {}, {})
    assert checkpoints.wait()
    newest = checkpoints.newest()
    assert newest is not None and load_optimizer_tensors(newest) == {}
    loaded = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    load_weights(newest, loaded)
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    by_library = load_file(newest / "weights.safetensors")
    assert all(torch.equal(by_library[name], wanted[name]) for name in wanted)


def test_what_is_saved_is_a_copy(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=3)
    big = {"big": torch.zeros(4 << 20)}
    for step in (1, 2):  # the second time into the same memory
        state = {"losses": [step]}
        big["big"].fill_(step)
        checkpoints.save(step, big, {"big//exp_avg": big["big"]}, state)
        big["big"].fill_(-1)
        state["losses"].append(99)
        assert checkpoints.wait()
        saved = tmp_path / f"step-{step:06d}"
        for kind in ("weights", "optimizer"):
            (tensor,) = load_file(saved / f"{kind}.safetensors").values()
            assert bool((tensor == step).all())
        assert load_state(saved) == {"losses": [step]}


def test_without_memory_for_a_copy(capsys: pytest.CaptureFixture[str]) -> None:
    free = free_memory_bytes()
    if free is None:
        pytest.skip("the system does not say how much memory is free")
    assert free > 1 << 20
    parts = {"weights": {"w": Part(torch.ones(1 << 10))}}
    snapshot = Snapshot()
    assert snapshot.take(parts, num_copies=1 << 40) is None and snapshot.take(parts, num_copies=1 << 40) is None
    assert capsys.readouterr().err.count("waits while checkpoints are written") == 1
    copied = snapshot.take(parts)
    assert copied is not None and torch.equal(copied["weights"]["w"].values, torch.ones(1 << 10))


# What is done to files, and a word of what is said about them.
def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [cut, grow, flip, empty, Path.unlink, make_directory], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found(
    tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    assert save(checkpoints, 3) and save(checkpoints, 6)
    damage(tmp_path / "step-000006" / name)
    assert_holds(Checkpoints(tmp_path, identity="i", keep=2).newest(), 3)
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "step-000006 is not used" in told
    # One byte of the manifest may make it that of another training, version or step: told as that.
    assert name in told or (name == "manifest.json" and damage is flip)
    assert names(tmp_path) == ["broken-step-000006", "step-000003"]


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    assert save(checkpoints, 6)
    manifest = tmp_path / "step-000006" / "manifest.json"
    whole = manifest.read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= random.randrange(1, 256)
        manifest.write_bytes(content)
        assert checkpoints.newest() is None, f"byte {position}: {bytes(content)!r}"
        (tmp_path / "broken-step-000006").rename(tmp_path / "step-000006")
        manifest.write_bytes(whole)
    assert_holds(checkpoints.newest(), 6)


def test_all_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    assert save(checkpoints, 3) and save(checkpoints, 6)
    cut(tmp_path / "step-000003" / "weights.safetensors")
    flip(tmp_path / "step-000006" / "state.json")
    assert checkpoints.newest() is None
    assert capsys.readouterr().err.count("is not used") == 2


def test_other_trainings_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=3)
    assert save(checkpoints, 3) and save(checkpoints, 6)
    manifest = tmp_path / "step-000006" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    shutil.copytree(tmp_path / "step-000003", tmp_path / "step-000005")
    assert_holds(checkpoints.newest(), 3)
    told = capsys.readouterr().err
    assert "written by another version" in told and "that of step 3" in told
    assert Checkpoints(tmp_path, identity="other", keep=3).newest() is None
    assert "other settings or data" in capsys.readouterr().err


def test_what_was_set_aside_stays_until_it_is_asked_to_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    assert save(checkpoints, 3) and save(checkpoints, 6)
    flip(tmp_path / "step-000006" / "state.json")
    assert_holds(checkpoints.newest(), 3)
    assert save(checkpoints, 9) and names(tmp_path) == ["broken-step-000006", "step-000003", "step-000009"]
    assert checkpoints.remove_broken() == ["broken-step-000006"]
    assert names(tmp_path) == ["step-000003", "step-000009"] and checkpoints.remove_broken() == []


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    assert save(checkpoints, 1) and save(checkpoints, 2, best=True) and save(checkpoints, 3)
    for step in (4, 5):  # by another process: what is best is not forgotten
        checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
        assert save(checkpoints, step)
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]
    assert_holds(checkpoints.best(), 2)
    assert_holds(checkpoints.newest(), 5)
    assert save(checkpoints, 6, best=True)
    assert names(tmp_path) == ["step-000005", "step-000006"], "a better one is whole"
    assert_holds(checkpoints.best(), 6)
    cut(tmp_path / "step-000006" / "weights.safetensors")
    assert checkpoints.best() is None
    assert_holds(checkpoints.newest(), 5)


def test_the_same_step_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity="i", keep=2)
    assert save(checkpoints, 4)
    checkpoints.save(4, weights_of(5), optimizer_of(5), {"step": 5})
    assert checkpoints.wait() and names(tmp_path) == ["step-000004"]
    assert load_state(tmp_path / "step-000004") == {"step": 5}
    # A crash between the two renames of a replacement: the old one comes back, the half-written one goes.
    (tmp_path / "step-000004").rename(tmp_path / ".step-000004.old")
    (tmp_path / ".step-000004.abc-2.tmp").mkdir()
    (tmp_path / ".step-000004.abc-2.tmp" / "weights.safetensors").write_bytes(b"half")
    newest = Checkpoints(tmp_path, identity="i", keep=2).newest()
    assert newest is not None and load_state(newest) == {"step": 5}
    assert names(tmp_path) == ["step-000004"]


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Callable[[], None]]:
    """Yield what makes room on a disk of 4 MiB that is full but for one."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        (path / "ballast").write_bytes(bytes(3 << 20))
        yield (path / "ballast").unlink
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def short_files(path: Path) -> Iterator[Callable[[], None]]:
    """Yield what lifts a limit of 1 MiB on the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        yield lift
    finally:
        lift()


@pytest.mark.parametrize("limit", [small_disk, short_files], ids=lambda f: f.__name__)
def test_a_full_disk_costs_only_the_checkpoint(
    tmp_path: Path, limit: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with limit(tmp_path / "disk") as make_room:
        directory = tmp_path / "disk" / "checkpoints"
        checkpoints = Checkpoints(directory, identity="i", keep=1)
        assert save(checkpoints, 1)
        big = {"big": torch.ones(400_000)}
        checkpoints.save(2, big, {}, {})
        assert not checkpoints.wait()
        told = capsys.readouterr().err
        assert "warning: checkpoint of step 2 could not be written, training goes on: [Errno" in told
        assert names(directory) == ["step-000001"], "nothing half-written is left, and the old one is not given away"
        assert_holds(checkpoints.newest(), 1)
        checkpoints.save(3, big, {}, {})  # nobody waits for this one
        make_room()
        checkpoints.save(4, big, {}, {})
        assert checkpoints.wait() and names(directory) == ["step-000004"]


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").write_text("a file stands where the directory should be")
    checkpoints = Checkpoints(tmp_path / "checkpoints", identity="i", keep=1)
    assert checkpoints.newest() is None
    assert not save(checkpoints, 1) and not save(checkpoints, 2)
    assert capsys.readouterr().err.count("could not be written, training goes on") == 2


def _save_for_ever(directory: Path, done: Path) -> None:
    torch.set_num_threads(1)
    checkpoints = Checkpoints(directory, identity="i", keep=2)
    newest = checkpoints.newest()
    step = load_state(newest)["step"] if newest else 0
    while True:
        step += 1
        filler = {"filler": torch.full((1 << 18,), float(step))}
        checkpoints.save(step, weights_of(step) | filler, optimizer_of(step), {"step": step, "note": "ü"})
        if step % 3 == 0:
            assert checkpoints.wait()
            done.write_text(str(step))


def test_killed_at_any_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, done = tmp_path / "checkpoints", tmp_path / "done"
    found = set()
    for _ in range(8):
        done.unlink(missing_ok=True)
        child = PROCESSES.Process(target=_save_for_ever, args=(directory, done))
        child.start()
        limit = time.monotonic() + 60
        while not done.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(random.random() * 0.15)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        newest = Checkpoints(directory, identity="i", keep=2).newest()
        assert newest is not None
        step = load_state(newest)["step"]
        assert step >= int(done.read_text() or 0), "what was said to be written is there"
        loaded = weights_of(-1) | {"filler": torch.zeros(1 << 18)}
        load_weights(newest, loaded)
        assert all(bool((tensor == step).all()) for tensor in loaded.values())
        assert not list(directory.glob(".*")), "leftovers are gone"
        found.add(step)
    assert len(found) == 8, "each went on from where the one before stopped"
    assert "not used" not in capsys.readouterr().err, "no kill leaves a broken one"


class Uneven(torch.nn.Module):
    """Sizes that no number of ranks divides, and fewer rows than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(5, 7)
        self.second = torch.nn.Linear(7, 3, bias=False)
        self.third = torch.nn.Linear(3, 1)
        self.even = torch.nn.Linear(1, 12)

    def forward(self, x: Any) -> Any:
        return self.even(self.third(self.second(self.first(x).tanh())))


def _trained(seed: int, *, shard: bool, num_steps: int) -> tuple[dict[str, Any], Any]:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(seed)
    model = Uneven()
    if shard:
        fully_shard(model.first)
        fully_shard(model)
    weights = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    for _ in range(num_steps):
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights, optimizer


def _whole(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
        for name, tensor in tensors.items()
    }


def _load_and_compare(checkpoint: Path, expected: Path, *, shard: bool) -> None:
    """Load into another model, and compare every value with what was saved."""
    weights, optimizer = _trained(99, shard=shard, num_steps=1)
    load_weights(checkpoint, weights)
    fill_optimizer(optimizer, weights, load_optimizer_tensors(checkpoint, weights))
    found = _whole(weights | optimizer_tensors(optimizer, weights))
    wanted = load_file(expected)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _in_world(work: Callable[..., None], rank: int, num_ranks: int, meet: Path, arguments: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=num_ranks)
    work(rank, num_ranks, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def run_world(num_ranks: int, path: Path, work: Callable[..., None], *arguments: Any) -> None:
    meet = path / f"meet-{random.randrange(1 << 30)}"
    ranks = [
        PROCESSES.Process(target=_in_world, args=(work, rank, num_ranks, meet, arguments)) for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * num_ranks


def _save_shards(rank: int, num_ranks: int, directory: Path, expected: Path) -> None:
    weights, optimizer = _trained(1, shard=True, num_steps=2)
    checkpoints = Checkpoints(directory, identity="i", keep=2, rank=rank, num_ranks=num_ranks, attempt="abc")
    checkpoints.save(2, weights, optimizer_tensors(optimizer, weights), {"step": 2})
    assert checkpoints.wait()
    whole = _whole(weights | optimizer_tensors(optimizer, weights))
    if rank == 0:
        save_file(whole, str(expected))


def _load_shards(rank: int, num_ranks: int, checkpoint: Path, expected: Path) -> None:
    _load_and_compare(checkpoint, expected, shard=True)


@pytest.mark.slow
def test_saved_by_two_ranks_and_read_by_others(tmp_path: Path) -> None:
    directory, expected = tmp_path / "checkpoints", tmp_path / "expected.safetensors"
    run_world(2, tmp_path, _save_shards, directory, expected)
    newest = Checkpoints(directory, identity="i", keep=2).newest()
    assert newest is not None
    tensor_files = [f"{kind}-0000{n}-of-00002.safetensors" for kind in ("weights", "optimizer") for n in (1, 2)]
    assert names(newest) == sorted([*tensor_files, "state.json", "manifest.json"])
    _load_and_compare(newest, expected, shard=False)
    for num_ranks in (1, 3, 4):
        run_world(num_ranks, tmp_path, _load_shards, newest, expected)
    for name in tensor_files:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(directory, copy)
        flip(copy / newest.name / name)
        assert Checkpoints(copy, identity="i", keep=2).newest() is None


def test_saved_by_one_and_read_by_two(tmp_path: Path) -> None:
    weights, optimizer = _trained(3, shard=False, num_steps=2)
    tensors = optimizer_tensors(optimizer, weights)
    checkpoints = Checkpoints(tmp_path / "checkpoints", identity="i", keep=2)
    checkpoints.save(1, weights, tensors, {})
    assert checkpoints.wait()
    save_file(_whole(weights | tensors), str(tmp_path / "expected.safetensors"))
    run_world(2, tmp_path, _load_shards, tmp_path / "checkpoints" / "step-000001", tmp_path / "expected.safetensors")


def _save_copies(rank: int, num_ranks: int, directory: Path) -> None:
    checkpoints = Checkpoints(directory, identity="i", keep=2, rank=rank, num_ranks=num_ranks, attempt="abc")
    assert save(checkpoints, 5)


def test_equal_copies_are_written_once(tmp_path: Path) -> None:
    run_world(2, tmp_path, _save_copies, tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints" / "step-000005") == sorted(FILES)
    assert_holds(Checkpoints(tmp_path / "checkpoints", identity="i", keep=2).newest(), 5)


def _fail_once(rank: int, num_ranks: int, directory: Path, failing: int) -> None:
    import torch.distributed as dist

    weights, optimizer = _trained(1, shard=True, num_steps=1)
    tensors = optimizer_tensors(optimizer, weights)
    checkpoints = Checkpoints(directory, identity="i", keep=2, rank=rank, num_ranks=num_ranks, attempt="abc")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == failing:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    checkpoints.save(1, weights, tensors, {})
    written = checkpoints.wait()
    assert not written or rank not in (0, failing)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    dist.barrier()
    checkpoints.save(2, weights, tensors, {})
    assert checkpoints.wait()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write(tmp_path: Path, failing: int) -> None:
    begun = time.monotonic()
    run_world(2, tmp_path, _fail_once, tmp_path / "checkpoints", failing)
    assert time.monotonic() - begun < 60, "nobody waits for what will not come"
    assert names(tmp_path / "checkpoints") == ["step-000002"]
    assert Checkpoints(tmp_path / "checkpoints", identity="i", keep=2).newest() is not None


def _fall_silent(rank: int, num_ranks: int, directory: Path, num_bytes: int) -> None:
    import torch.distributed as dist

    from tunesmith.train import checkpoint

    checkpoint._PEER_SECONDS = 0.5
    weights, optimizer = _trained(1, shard=True, num_steps=1)
    if rank == 0:
        checkpoints = Checkpoints(directory, identity="i", keep=2, rank=0, num_ranks=num_ranks, attempt="abc")
        with (directory.parent / "told").open("w") as told, contextlib.redirect_stderr(told):
            checkpoints.save(1, weights, optimizer_tensors(optimizer, weights), {})
            assert not checkpoints.wait()
    elif num_bytes:
        part = directory / ".step-000001.abc-1.tmp" / "weights-00002-of-00002.safetensors"
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:  # slower than the limit as a whole, and never silent for so long
            for _ in range(num_bytes):
                file.write(b"x")
                file.flush()
                time.sleep(0.2)
    dist.barrier()


@pytest.mark.parametrize("num_bytes", [0, 5])
def test_a_rank_that_falls_silent_is_named(tmp_path: Path, num_bytes: int) -> None:
    run_world(2, tmp_path, _fall_silent, tmp_path / "checkpoints", num_bytes)
    told = (tmp_path / "told").read_text()
    assert "checkpoint of step 1 could not be written" in told and "rank 1 has written nothing for" in told
    assert ("after 5 bytes of its part" in told) == bool(num_bytes)
    assert names(tmp_path / "checkpoints") == []
