"""Where rows come from: files of every kind, directories, globs, data sets; and how they are named."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError, EnvironmentProblem
from tunesmith.recipe.schema import Source
from tunesmith.rows import hub
from tunesmith.rows.examples import conversations
from tunesmith.rows.sources import Row, is_hub_id, read_rows, source_files

ROWS = [{"prompt": f"Question {n} äöü 你好", "completion": f"Answer\n{n}"} for n in range(5)]


def values(source: Source) -> list[dict[str, Any]]:
    rows = list(read_rows(source))
    assert all(isinstance(row, Row) for row in rows)
    return [row.value for row in rows if isinstance(row, Row)]


def lines(source: Source) -> list[int]:
    return [row.line for row in read_rows(source)]


def csv_of(delimiter: str) -> str:
    header = delimiter.join(["prompt", "completion"])
    return "\r\n".join([header, *(f'{r["prompt"]}{delimiter}"{r["completion"]}"' for r in ROWS)])


TEXTS = {
    "rows.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "windows.jsonl": "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in ROWS),
    "lines_in_spite_of_the_name.json": "\n".join(json.dumps(row) for row in ROWS),
    "array.json": json.dumps(ROWS),
    "pretty.json": "\ufeff" + json.dumps(ROWS, indent=2),
    "array_in_spite_of_the_name.jsonl": json.dumps(ROWS, indent=1),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}),
    "wrapped_pretty.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "wrapped_with_a_row_per_line.json": '{"data": [\n' + ",\n".join(json.dumps(row) for row in ROWS) + "\n]}",
    "one_after_the_other.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "one_after_the_other.jsonl": "\n\n".join(json.dumps(row, indent=2) for row in ROWS),
    "side_by_side.json": "  ".join(json.dumps(row) for row in ROWS),
    "rows.csv": csv_of(","),
    "semicolons.csv": csv_of(";"),
    "tabs.tsv": csv_of("\t"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_every_kind_of_text_file(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / (name + (".gz" if packed else ""))
    content = TEXTS[name].encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert values(Source(str(path))) == ROWS


def test_lines_are_where_rows_begin(tmp_path: Path) -> None:
    for name, expected in (
        ("rows.jsonl", [1, 2, 3, 4, 5]),
        ("array.json", [1, 2, 3, 4, 5]),
        ("one_after_the_other.json", [1, 5, 9, 13, 17]),
        ("rows.csv", [2, 4, 6, 8, 10]),
    ):
        (tmp_path / name).write_text(TEXTS[name])
        assert lines(Source(str(tmp_path / name))) == expected


@pytest.mark.parametrize("suffix", [".parquet", ".parquet.gz"])
def test_parquet(tmp_path: Path, suffix: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({key: [row[key] for row in ROWS] for key in ROWS[0]})
    parquet.write_table(table, path, row_group_size=2)
    if suffix == ".parquet.gz":
        content = gzip.compress(path.read_bytes())
        path = tmp_path / "rows.parquet.gz"
        path.write_bytes(content)
    assert values(Source(str(path))) == ROWS
    assert lines(Source(str(path))) == [1, 2, 3, 4, 5]


def test_null_fields_that_columns_add_are_left_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    calls = [{"city": "Berlin"}, {"number": 3}]
    parquet.write_table(pyarrow.Table.from_pylist([{"arguments": call} for call in calls]), tmp_path / "a.parquet")
    assert [row["arguments"] for row in values(Source(str(tmp_path / "a.parquet")))] == calls


def test_directories_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", ".hidden.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXTS["rows.jsonl"])

    def names(path: str) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in source_files(Source(path))]

    assert names(str(tmp_path)) == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert names(f"{tmp_path}/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(f"{tmp_path}/**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert len(values(Source(str(tmp_path)))) == 15


def test_a_name_with_glob_characters_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows[1].jsonl"
    path.write_text(TEXTS["rows.jsonl"])
    assert source_files(Source(str(path))) == [path]


def test_max_rows_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXTS["rows.jsonl"] + "\n{broken")
    source = Source(str(path), max_rows=2, columns={"prompt": "question", "absent": "x"})
    assert values(source) == [{"question": r["prompt"], "completion": r["completion"]} for r in ROWS[:2]]


def test_columns_can_change_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "text": "c"}')
    swapped = Source(str(path), columns={"prompt": "completion", "completion": "prompt"})
    assert values(swapped) == [{"completion": "a", "prompt": "b", "text": "c"}]
    replaced = Source(str(path), columns={"text": "prompt"})
    assert values(replaced) == [{"completion": "b", "prompt": "c"}]


def test_environment_references_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text(TEXTS["rows.jsonl"])
    monkeypatch.setenv("TUNESMITH_ROWS", str(tmp_path))
    assert values(Source("${env:TUNESMITH_ROWS}/rows.jsonl")) == ROWS
    with pytest.raises(EnvironmentProblem):
        values(Source("${env:TUNESMITH_NOT_SET}/rows.jsonl"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rows.jsnl", "there is no file"),
        ("elsewhere/other.csv", "there is no file"),
        ("*.csv", "no file matches"),
        ("empty", "no file of a known kind"),
        ("x.txt", "'.txt'"),
    ],
)
def test_missing_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(Source(path)))
    if path == "rows.jsnl":
        assert "rows.jsonl" in caught.value.do
    if path in ("*.csv", "elsewhere/other.csv"):
        assert f"looked for in {tmp_path}" in caught.value.do


def test_an_array_larger_than_the_window_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    row = {"prompt": "x" * 20_000, "completion": "é" * 1_000}
    with path.open("w") as file:
        file.write("[" + ",\n".join(json.dumps(row | {"n": n}, ensure_ascii=False) for n in range(1_000)) + "]")
    assert path.stat().st_size > 20 << 20
    tracemalloc.start()
    numbers = [row.value["n"] for row in read_rows(Source(str(path))) if isinstance(row, Row)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers == list(range(1_000))
    assert peak < 12 << 20


def test_objects_across_the_window_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [{"prompt": "é" * (300_000 + n), "n": -n} for n in range(6)]
    path.write_text("\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows))
    assert values(Source(str(path))) == rows


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", True),
        ("owner/name.jsonl", False),
        ("./name", False),
        ("a/b/c", False),
        ("*/name", False),
        ("name", False),
        ("here/name", False),
    ],
)
def test_what_names_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: bool) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_hub_id(Source(path)) is expected


def test_a_data_set_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"'nobody/nothing-at-all' \(split 'train', subset 's'\) cannot be loaded"
    ) as caught:
        list(read_rows(Source("nobody/nothing-at-all", subset="s")))
    assert "HF_TOKEN" in caught.value.do


def test_rows_of_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "set"
    directory.mkdir()
    (directory / "train.jsonl").write_text(TEXTS["rows.jsonl"])
    (directory / "test.jsonl").write_text(json.dumps(ROWS[0]))
    source = Source(str(directory), split="train")
    assert [row.value for row in hub.rows(source) if isinstance(row, Row)] == ROWS
    assert [row.line for row in hub.rows(Source(str(directory), split="test"))] == [1]
    assert hub.commit(hub.load(source)) is None  # local files have none
    fingerprint = hub.content_hash(hub.load(source))
    assert fingerprint and fingerprint != hub.content_hash(hub.load(Source(str(directory), split="test")))
    with pytest.raises(DataError, match="cannot be loaded"):
        list(hub.rows(Source(str(directory), split="nonsense")))


def test_commit_is_read_from_the_record_of_downloads() -> None:
    class Info:
        download_checksums = {f"hf://datasets/owner/name@{'ab' * 20}/data/train.parquet": {}}  # noqa: RUF012

    class Loaded:
        info = Info()

    assert hub.commit(Loaded()) == "ab" * 20


def test_examples_are_all_good_or_an_error(tmp_path: Path) -> None:
    good = tmp_path / "a.jsonl"
    good.write_text(TEXTS["rows.jsonl"])
    found = conversations((str(good), f"{tmp_path}/a*.jsonl"), limit=7)
    assert [where for where, _ in found[:2]] == [f"{good}:1", f"{good}:2"] and len(found) == 7
    assert found[0][1].messages[0]["content"] == ROWS[0]["prompt"]
    bad = tmp_path / "b.jsonl"
    bad.write_text(TEXTS["rows.jsonl"] + '\n{"prompt": ""}')
    assert len(conversations((str(bad),), limit=5)) == 5
    with pytest.raises(DataError, match="cannot be used") as caught:
        conversations((str(bad),))
    assert caught.value.where == f"{bad}:6"
    pairs = tmp_path / "c.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    with pytest.raises(DataError, match="preference pair"):
        conversations((str(pairs),))
