"""Files are whole or not there; runs are found by any of their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.artifacts import Report, Verdict
from tunesmith.errors import StageError, UsageError
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir, create, find_run, list_runs


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with files.writing_directory(path) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), files.writing_directory(path) as temporary:
        (temporary / "b").write_text("2")
        raise RuntimeError
    with files.writing_directory(path) as temporary:
        (temporary / "c").write_text("3")
    assert [p.name for p in path.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [path]


def test_hashes_are_remembered_and_renewed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"one")
    cache = files.HashCache(tmp_path / "cache" / "hashes.json")
    first = cache.sha256(file)
    assert first == files.sha256(file)
    file.write_bytes(b"two!")
    again = files.HashCache(tmp_path / "cache" / "hashes.json")
    assert again.sha256(file) == files.sha256(file) != first
    (tmp_path / "cache" / "hashes.json").write_text("{broken")
    assert files.HashCache(tmp_path / "cache" / "hashes.json").sha256(file) == files.sha256(file)


def test_link_tree_makes_the_same_files(tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "below").mkdir(parents=True)
    (source / "below" / "f").write_text("x")
    files.link_tree(source, tmp_path / "t")
    assert (tmp_path / "t" / "below" / "f").samefile(source / "below" / "f")


def test_records_round_trip(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    verdict = Verdict(passed=False, rules=({"rule": "a < 1", "passed": False, "evidence": "2"},))
    run.save(verdict)
    assert run.load(Verdict) == verdict
    assert run.find(Report) is None
    document = json.loads(run.artifact("gate").read_text())
    run.artifact("gate").write_text(json.dumps(document | {"surprise": 1}))
    with pytest.raises(StageError, match="cannot be read"):
        run.load(Verdict)
    with pytest.raises(StageError, match="has not run"):
        run.load(Report)


def test_runs_are_found_by_any_name(tmp_path: Path) -> None:
    run = create(tmp_path, "my-recipe")
    run.write_run({"state": "done"})
    other = create(tmp_path, "recipe")
    other.write_run({"state": "done"})
    assert [r.path.name for r in list_runs(tmp_path, "recipe")] == [other.path.name]
    for word in ("latest", other.path.name, "recipe", str(other.path)):
        assert find_run(word, tmp_path).path.name == other.path.name
    assert find_run("my-recipe", tmp_path).path.name == run.path.name
    with pytest.raises(UsageError, match="there is no run"):
        find_run("nothing", tmp_path)


def test_a_run_is_held_by_one_process(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    with run.locked(), pytest.raises(UsageError, match="another process"), RunDir(tmp_path / "r").locked():
        pass


@pytest.mark.parametrize("text", ["", "[]", '{"stages": 5}', '{"stages": {"data": 5}, "lineage": []}', '{"na'])
def test_a_run_is_shown_whatever_became_of_its_files(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import finished_runs
    from tunesmith.cli.app import main

    run = finished_runs.write(tmp_path / "outputs" / "runs" / "20260131-142233-mine")
    run.run_json.write_text(text)
    run.artifact("bench").write_text('{"kind": "speeds", "schema_version": 99}')
    assert main(["runs", "--output-dir", str(tmp_path / "outputs")]) == 0
    assert "20260131-142233-mine" in capsys.readouterr().out
    assert main(["runs", str(run.path)]) == 0
    told = capsys.readouterr().out
    assert "found 'speeds' of schema 99" in told and "function_calls.accuracy" in told
    assert main(["runs", str(run.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "scores" in document["records"] and "schema 99" in document["problems"][0]["what"]


def test_a_run_that_nobody_works_on_is_not_said_to_be_running(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.outcome() == "unknown"
    with run.locked():
        run.write_run({"state": "running"})
        assert run.outcome() == "running"
    assert run.outcome() == "killed", "its process ended without a word"
    run.write_run({"state": "done"})
    assert run.outcome() == "done"
