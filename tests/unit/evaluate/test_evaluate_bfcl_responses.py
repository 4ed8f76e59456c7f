"""`tunesmith bfcl score`: a file of answers to a file of verdicts, and what is said about files that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import hardware
from tunesmith.cli.app import main
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate import all_cores
from tunesmith.evaluate.bfcl import format_sensitivity
from tunesmith.evaluate.bfcl.categories import category, expand
from tunesmith.evaluate.bfcl.folder import ScoredFolder, score_folder
from tunesmith.evaluate.bfcl.responses import Scored, score

_FUNCTION = {
    "name": "f",
    "description": "Does it.",
    "parameters": {"type": "dict", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}


def write_data(directory: Path, name: str = "simple_python", num_items: int = 3) -> Path:
    (directory / "possible_answer").mkdir(parents=True, exist_ok=True)
    ids = [f"{name}_{n}" for n in range(num_items)]
    question = [[{"role": "user", "content": "go"}]]
    items = [{"id": i, "question": question, "function": [_FUNCTION]} for i in ids]
    truth = [{"id": i, "ground_truth": [{"f": {"n": [n]}}]} for n, i in enumerate(ids)]
    _write_lines(directory / f"BFCL_v4_{name}.json", items)
    _write_lines(directory / "possible_answer" / f"BFCL_v4_{name}.json", truth)
    return directory


def _write_lines(path: Path, documents: list) -> Path:
    path.write_text("".join((d if isinstance(d, str) else json.dumps(d)) + "\n" for d in documents))
    return path


def _score(tmp_path: Path, answers: list, name: str = "simple_python"):
    data = write_data(tmp_path / "data")
    path = _write_lines(tmp_path / "answers.jsonl", answers)
    return score(category(name), data, path, tmp_path / "verdicts.jsonl")


def test_verdicts_come_one_line_each_in_the_order_of_the_answers(tmp_path: Path) -> None:
    answers = [
        {"id": "simple_python_2", "response": "f(n=2)"},
        {"id": "simple_python_0", "response": "f(n=7)"},
    ]
    scored = _score(tmp_path, answers)
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert lines[0] == {"id": "simple_python_2", "valid": True, "error_type": "", "error": ""}
    assert (lines[1]["id"], lines[1]["valid"], lines[1]["error_type"]) == (
        "simple_python_0",
        False,
        "value_error:others",
    )
    assert (scored.accuracy, scored.total_count, scored.num_missing) == (0.5, 2, 1)
    assert scored.as_json()["error_types"] == {"value_error:others": 1}


def test_official_result_files_and_former_ids_are_read(tmp_path: Path) -> None:
    scored = _score(tmp_path, [{"id": "simple_1", "result": "f(n=1)"}], "simple")
    assert (scored.correct_count, scored.category, scored.data_version) == (1, "simple_python", "BFCL_v4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "simple_python_1"', "line 2: no JSON"),
        ('["simple_python_1", "f()"]', 'line 2: not of the form {"id"'),
        ('{"id": 1, "response": "f()"}', 'line 2: not of the form {"id"'),
        ('{"id": "simple_python_1"}', "line 2: 'simple_python_1' has no `response`"),
        (
            '{"id": "simple_python_11", "response": ""}',
            "line 2: there is no item 'simple_python_11' (nearest: 'simple_python_1')",
        ),
        (
            '{"id": "simple_python_0", "response": ""}',
            "line 2: 'simple_python_0' is answered a second time, first in line 1",
        ),
        ('{"id": "simple_0", "response": ""}', "line 2: 'simple_0' is answered a second time, first in line 1"),
    ],
)
def test_lines_that_cannot_be_used_are_named_and_nothing_is_written(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        _score(tmp_path, [{"id": "simple_python_0", "response": "f(n=0)"}, line])
    assert message in caught.value.render()
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_many_bad_lines_are_told_in_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="25 of its lines cannot be used") as caught:
        _score(tmp_path, ["{"] * 25)
    assert "and 15 more" in caught.value.render()


def test_an_empty_or_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no answer"):
        _score(tmp_path, [])
    with pytest.raises(DataError, match="no such file"):
        score(category("simple"), write_data(tmp_path), tmp_path / "none.jsonl", tmp_path / "v.jsonl")


def test_categories_of_several_answers_are_refused(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.jsonl", [{"id": "memory_0", "response": ""}])
    with pytest.raises(UsageError, match="memory_kv is not scored"):
        score(category("memory_kv"), tmp_path, path, tmp_path / "v.jsonl")


def test_the_command_prints_what_the_number_was_obtained_under(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data")
    answers = _write_lines(tmp_path / "a.jsonl", [{"id": "simple_python_1", "response": [{"f": '{"n": 1}'}]}])
    common = ["bfcl", "score", "--category", "simple", "--responses", str(answers), "--data", str(data)]
    arguments = [*common, "--out", str(tmp_path / "v.jsonl"), "--protocol", "fc-openai-tools"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "simple_python: 100.00 % (1 of 1 right, 2 not answered) · fc-openai-tools · BFCL_v4" in told
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_missing"] == 2
    assert main([*common[:3], "simpel", *common[4:], "--out", str(tmp_path / "v.jsonl")]) == 2
    assert "did you mean 'simple'?" in capsys.readouterr().err
    assert main([*common[:-1], str(tmp_path / "nowhere"), "--out", str(tmp_path / "v.jsonl")]) == 3
    asked = answers.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(answers)
    for out in (answers, tmp_path / "link.jsonl"):
        assert main([*common, "--out", str(out)]) == 2
        assert "would replace the answers" in capsys.readouterr().err and answers.read_bytes() == asked
    assert main(["bfcl", "categories"]) == 0
    assert "simple_python                400  non_live (before version 4: simple)" in capsys.readouterr().out


def test_scoring_imports_no_ml_library(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    answers = _write_lines(tmp_path / "a.jsonl", [{"id": "simple_python_1", "response": "f(n='\\d'+'a')"}])
    arguments = ["bfcl", "score", "--category", "simple", "--data", str(data), "--responses", str(answers)]
    program = (
        "import sys\nfrom tunesmith.cli.app import main\n"
        f"assert main({[*arguments, '--out', str(tmp_path / 'v.jsonl')]!r}) == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'httpx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "no library, and no warning about what a model wrote"


def test_the_data_is_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "data")
    monkeypatch.setenv("TUNESMITH_BFCL_DATA", str(tmp_path / "data"))
    answers = _write_lines(tmp_path / "a.jsonl", [{"id": "simple_python_1", "response": "f(n=1)"}])
    arguments = ["--category", "simple", "--responses", str(answers), "--out", str(tmp_path / "v.jsonl")]
    assert main(["bfcl", "score", *arguments]) == 0


# ---- directories


def _folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    answers = tmp_path / "result" / "model" / "non_live"
    answers.mkdir(parents=True)
    (tmp_path / "result" / "model" / "live").mkdir()
    right, wrong = ({"id": "simple_python_1", "result": f"[f(n={n})]"} for n in (1, 2))
    _write_lines(answers / "BFCL_v3_simple_result.json", [right])
    _write_lines(answers / "BFCL_v4_memory_kv_result.json", [{"id": "memory_0", "result": ""}])
    _write_lines(answers / "notes.jsonl", [wrong])
    return tmp_path / "result" / "model"


def test_a_directory_is_scored_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = _folder(tmp_path)
    command = ["bfcl", "score", "--responses", str(answers), "--data", str(tmp_path / "data")]
    assert main([*command, "--out", str(answers / "verdicts")]) == 0
    told = capsys.readouterr()
    assert "simple_python: 100.00 % (1 of 1 right, 2 not answered)" in told.out and "BFCL_v4_memory_kv" in told.err
    written = {path.name: path.read_text() for path in (answers / "verdicts").iterdir()}
    assert written == {"simple_python.jsonl": written["simple_python.jsonl"]}
    assert json.loads(written["simple_python.jsonl"])["valid"]
    assert main([*command, "--out", str(answers / "verdicts"), "--json", "--category", "non_live"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["category"] for one in found["categories"]] == ["simple_python"] and found["summary"] == {}


def test_several_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, answers = tmp_path / "data", tmp_path / "answers"
    answers.mkdir()
    for name, said in (("multiple", "[f(n={})]"), ("parallel", "[f(n={}), f(n=2)]"), ("irrelevance", "f(n={})")):
        write_data(data, name, 300)
        lines = [{"id": f"{name}_{n}", "response": said.format(n % 7)} for n in range(300)]
        _write_lines(answers / f"{name}.jsonl", lines)
    whole = score_folder(answers, data, tmp_path / "one")
    monkeypatch.setattr(all_cores, "_has_threads", lambda: False)  # another test's
    monkeypatch.setattr(all_cores, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(all_cores, "_WORTH_SECONDS", 0.0001)
    monkeypatch.setattr(hardware, "num_cpus", lambda: 3)
    forks = []
    monkeypatch.setattr(os, "fork", lambda fork=os.fork: forks.append(None) or fork())
    assert score_folder(answers, data, tmp_path / "several") == whole and len(forks) == 2
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "several" / path.name).read_bytes()


def test_no_verdicts_are_written_when_one_file_of_a_directory_cannot_be_used(tmp_path: Path) -> None:
    answers = _folder(tmp_path)
    write_data(tmp_path / "data", "multiple")
    _write_lines(answers / "multiple.jsonl", ["{"])
    with pytest.raises(DataError, match="cannot be used"):
        score_folder(answers, tmp_path / "data", tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_a_directory_that_cannot_be_scored_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = _folder(tmp_path)
    command = ["bfcl", "score", "--responses", str(answers), "--data", str(tmp_path / "data"), "--out"]
    assert main([*command, str(answers)]) == 2 and "among the answers" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "v"), "--category", "live"]) == 3
    assert "no file of answers" in capsys.readouterr().err and not (tmp_path / "v").exists()
    _write_lines(answers / "live" / "simple_python.jsonl", [{"id": "simple_python_1", "response": "f(n=1)"}])
    assert main([*command, str(tmp_path / "v")]) == 2
    assert "two files answer simple_python" in capsys.readouterr().err
    one = ["bfcl", "score", "--responses", str(answers / "live" / "simple_python.jsonl"), "--out", str(tmp_path / "v")]
    assert main(one) == 2 and "is of one category" in capsys.readouterr().err


def test_summary_numbers_are_those_of_whole_categories() -> None:
    scored = [
        Scored(known.name, "prompt", "BFCL_v4", known.num_items // 2, known.num_items, 0, {}, {})
        for known in expand(["non_live", "live"])
    ]
    found = ScoredFolder(tuple(scored), ()).as_json()["summary"]
    assert found["non_live"]["accuracy"] == pytest.approx(0.5) and "overall" not in found
    missing = dataclasses.replace(scored[0], num_missing=1)
    assert "non_live" not in ScoredFolder((missing, *scored[1:]), ()).as_json()["summary"]


# ---- format sensitivity


def test_there_are_26_forms_by_their_official_names() -> None:
    names = [form.name for form in format_sensitivity.FORMS]
    assert len(set(names)) == 26
    assert names[0] == "ret_fmt=python&tool_call_tag=True&func_doc_fmt=python&prompt_fmt=plaintext&style=classic"
    assert names[-2] == "ret_fmt=python&tool_call_tag=False&func_doc_fmt=json&prompt_fmt=markdown&style=classic"
    assert names[-1] == "ret_fmt=python&tool_call_tag=False&func_doc_fmt=json&prompt_fmt=plaintext&style=experimental"
    assert all(format_sensitivity.form_of(name).name == name for name in names)
    assert format_sensitivity.DEFAULT_FORM.name in names


def test_each_form_is_read_in_its_own_notation(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "BFCL_v4_format_sensitivity.json").write_text(json.dumps({"simple_python": ["simple_python_1"]}))
    texts = {
        "python": "[f(n=1)]",
        "json": '```json\n[{"function": "f", "parameters": {"n": 1}}]\n```',
        "verbose_xml": '<functions><function name="f"><params><param name="n" value="1" type="integer"/></params>'
        "</function></functions>",
        "concise_xml": '<functions><function name="f"><param name="n" type="integer">1</param></function></functions>',
    }
    entries = format_sensitivity.load_entries(data)
    assert len(entries) == 26
    answers = []
    for identifier in entries:
        form = format_sensitivity.form_of(identifier.split(":")[1])
        text = texts[form.notation] if form.style == "classic" else texts["json"]
        answers.append({"id": identifier, "response": f"<TOOLCALL>{text}</TOOLCALL>" if form.tagged else text})
    path = _write_lines(tmp_path / "a.jsonl", answers)
    scored = score(category("format_sensitivity"), data, path, tmp_path / "v.jsonl")
    assert scored.correct_count == 25
    assert scored.error_types == {"ast_decoder:decoder_failed": 1}
    assert scored.extra["accuracy_max_delta"] == 100.0


def test_spread_is_that_of_a_sample_in_percentage_points() -> None:
    def verdicts(form: str, *valid: bool) -> dict[str, bool]:
        return {f"format_sensitivity_{form}{n}:{form}:simple_python_{n}": v for n, v in enumerate(valid)}

    made = format_sensitivity.spread(
        verdicts("a", True, True) | verdicts("b", True, False) | verdicts("c", False, False)
    )
    assert (made["accuracy_max_delta"], made["accuracy_variance"], made["accuracy_std"]) == (100.0, 2500.0, 50.0)
    assert made["accuracy_by_form"]["b"] == {"accuracy": 0.5, "correct_count": 1, "total_count": 2}
    assert format_sensitivity.spread(verdicts("a", True))["accuracy_std"] == 0.0
