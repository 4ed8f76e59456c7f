"""Shards: what was written is read, half-written directories do not appear, damage is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.store.files import HashCache
from tunesmith.tokens.shards import Shards, ShardWriter


def write(directory: Path, *, vocab_size: int | None = 500) -> Path:
    with ShardWriter(directory, 3, vocab_size=vocab_size) as writer:
        writer.add([([1, 2], [False, False]), ([3, 4, 5], [True, True, False]), ([6], [True])])
        writer.add([([], []), ([7], [True]), ([8, 9], [False, True])], repeats=2)
        writer.close({"answer": 42})
    return directory


def test_segments_come_back(tmp_path: Path) -> None:
    shards = Shards(write(tmp_path / "s"))
    assert len(shards) == 3 and shards.num_segments == 3 and shards.num_rows == 2
    ids, trained = shards.segment(0, 1)
    assert ids.dtype == np.uint32 and trained.dtype == np.bool_
    assert ids.tolist() == [3, 4, 5] and trained.tolist() == [True, True, False]
    assert shards.segment(1, 2)[0].tolist() == shards.segment(2, 2)[0].tolist() == [8, 9]
    assert shards.segment(-1, 1)[0].tolist() == [7]
    assert shards.lengths.tolist() == [[2, 3, 1], [0, 1, 2], [0, 1, 2]]
    assert shards.num_trained.tolist() == [[0, 2, 1], [0, 1, 1], [0, 1, 1]]
    assert shards.meta == {"answer": 42}
    shards.verify()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (None, "uint32")])
def test_small_vocabularies_take_two_bytes(tmp_path: Path, vocab_size: int | None, dtype: str) -> None:
    with ShardWriter(tmp_path / "s", 1, vocab_size=vocab_size) as writer:
        writer.add([([65_535, 0], [True, False])])
        writer.close({})
    assert json.loads((tmp_path / "s" / "meta.json").read_text())["id_dtype"] == dtype
    assert Shards(tmp_path / "s").segment(0, 0)[0].tolist() == [65_535, 0]


def test_directory_appears_only_when_closed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", 1) as writer:
        writer.add([([1], [True])])
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path / "s", 1):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_empty_shards_can_be_read(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", 2) as writer:
        writer.close({})
    shards = Shards(tmp_path / "s")
    assert len(shards) == 0 and shards.lengths.shape == (0, 2) and shards.num_trained.shape == (0, 2)


def test_indices_out_of_range_are_refused(tmp_path: Path) -> None:
    shards = Shards(write(tmp_path / "s"))
    for row, s in ((3, 0), (-4, 0), (0, 3), (0, -1)):
        with pytest.raises(IndexError):
            shards.segment(row, s)


@pytest.mark.parametrize("name", ["ids.bin", "trained.bin", "offsets.bin", "sequences.bin"])
def test_missing_and_short_files_are_told(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "s") / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="bytes and should have"):
        Shards(tmp_path / "s")
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        Shards(tmp_path / "s")


@pytest.mark.parametrize("name", ["ids.bin", "trained.bin"])
def test_changed_content_is_found_by_its_sum(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path / "s")
    hashes = HashCache(tmp_path / "hashes.json")
    Shards(directory).verify(hashes)
    content = bytearray((directory / name).read_bytes())
    content[0] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(DataError, match="not what was written"):
        Shards(directory).verify(hashes)


def test_broken_index_is_found_at_once(tmp_path: Path) -> None:
    directory = write(tmp_path / "s")
    np.array([0, 2, 5, 4, 4, 7, 9], "<i8").tofile(directory / "offsets.bin")
    with pytest.raises(DataError, match="positions"):
        Shards(directory)
    directory = write(tmp_path / "t")
    np.array([0, 1, 2], "<i8").tofile(directory / "sequences.bin")
    with pytest.raises(DataError, match="rows that do not exist"):
        Shards(directory)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"layout_version": 1}', '{"layout_version": 99, "num_rows": 1}', "\x00"]
)
def test_broken_meta_is_told(tmp_path: Path, text: str) -> None:
    directory = write(tmp_path / "s")
    (directory / "meta.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        Shards(directory)


def test_absent_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenised rows"):
        Shards(tmp_path / "nothing")
