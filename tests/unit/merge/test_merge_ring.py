"""Files that go to the disk through a ring of memory: every byte in its place, past the page cache or through it."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tunesmith.merge import ring  # noqa: E402
from tunesmith.merge.fold import Block  # noqa: E402
from tunesmith.merge.ring import Output, Ring  # noqa: E402
from tunesmith.merge.write import _Writing  # noqa: E402
from tunesmith.model.scratch import Scratch  # noqa: E402

PIECE_BYTES = 16 << 10
# Empty ones, odd ones, pages, more than a piece; together some rings.
SIZES = [512, 0, 1, 3, 4096, 7000, 0, 40_001, *[5_000, 8_192, 12_345] * 30, 100_000, 2]


def blocks(sizes: list[int]) -> tuple[bytes, Iterator[Block]]:
    content = random.Random(7).randbytes(sum(sizes))

    def made() -> Iterator[Block]:
        begin = 0
        for size in sizes:
            piece = content[begin : begin + size]

            def fill(_: Scratch, target: torch.Tensor, piece: bytes = piece) -> None:
                assert target.shape == (len(piece),) and target.dtype == torch.uint8
                target.copy_(torch.frombuffer(bytearray(piece), dtype=torch.uint8))

            yield Block(size, fill)
            begin += size

    return content, made()


def written(path: Path, sizes: list[int]) -> tuple[bytes, str]:
    content, made = blocks(sizes)
    output = Output(path)
    digest = _Writing(output, made, Ring(max(sizes), piece_bytes=PIECE_BYTES)).run()
    output.close()
    assert digest == hashlib.sha256(content).hexdigest()
    return content, digest


@pytest.mark.parametrize("sizes", [SIZES, [1], [4096], [PIECE_BYTES * 3], [1_000_001, 5], SIZES[::-1]], ids=len)
def test_a_file_holds_its_blocks_in_order(tmp_path: Path, sizes: list[int]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what was there before" * 100_000)
    content, _ = written(path, sizes)
    assert path.read_bytes() == content


def test_a_file_system_without_direct_writes_is_written_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_pwrite = os.open, os.pwrite

    def refusing_open(path: Path, flags: int, mode: int) -> int:
        if flags & ring._DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, mode)

    def refusing_pwrite(descriptor: int, content: memoryview, offset: int) -> int:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & ring._DIRECT and offset >= 2 * PIECE_BYTES:
            raise OSError(22, "Invalid argument")
        return real_pwrite(descriptor, content[: 5 << 10], offset)  # and never all at once

    for name, refusing in (("open", refusing_open), ("pwrite", refusing_pwrite)):
        monkeypatch.setattr(ring.os, name, refusing)
        content, _ = written(tmp_path / name, SIZES)
        monkeypatch.undo()
        assert (tmp_path / name).read_bytes() == content


def test_a_block_that_fails_ends_everything(tmp_path: Path) -> None:
    _, made = blocks(SIZES)

    def failing() -> Iterator[Block]:
        yield from [next(made) for _ in range(50)]

        def fail(_: Scratch, target: torch.Tensor) -> None:
            raise ValueError("a block that cannot be made")

        yield Block(10_000, fail)
        yield from made

    output = Output(tmp_path / "file")
    with pytest.raises(ValueError, match="cannot be made"):
        _Writing(output, failing(), Ring(100_000, piece_bytes=PIECE_BYTES)).run()
    output.close()
