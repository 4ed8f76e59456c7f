"""`tunesmith evaluate`: endpoints nobody registered, alone and beside another, in run directories like any other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import harness_python
from tests.fakes.scripted_chat_server import Reply, Request, ScriptedChatServer, completion
from tunesmith.artifacts import Scores
from tunesmith.cli.app import main
from tunesmith.compare.runs import compare
from tunesmith.store.run_dir import RunDir, find_run

NUM_ROWS = 12


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(NUM_ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks.yaml").write_text("evaluate: {text: {files: [rows.jsonl], metrics: [exact_match]}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def knows(request: Request, number: int) -> dict[str, Any]:
    said = request["messages"][0]["content"].split()[1]
    return completion(said if request["model"] == "good" or int(said) < 3 else "what?")


def evaluate(server: ScriptedChatServer, *words: str, code: int = 0) -> RunDir:
    assert main(["evaluate", "tasks.yaml", "--endpoint", server.url, *words]) == code
    return newest()


def newest() -> RunDir:
    return find_run("latest", "outputs")


def test_one_endpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedChatServer(knows) as server:
        run_dir = evaluate(server, "--model", "good")
        assert len(server.requests) == NUM_ROWS
        assert evaluate(server, "--model", "good").path == run_dir.path
        assert len(server.requests) == NUM_ROWS  # known by now
        again = evaluate(server, "--model", "good", "--new")
        assert again.path != run_dir.path and len(server.requests) == 2 * NUM_ROWS
        other = evaluate(server, "--model", "bad", "--set", "evaluate.text.limit=6")
    assert run_dir.path.name.endswith("-good") and other.path != run_dir.path
    scores = run_dir.load(Scores)
    found = scores.tasks["text"]["exact_match"]
    assert (found["base"], found["tuned"], found["num_items"]) == (None, 1.0, NUM_ROWS)
    assert scores.protocol["models"] == {"tuned": {"url": server.url, "model": "good"}}
    assert run_dir.read_run()["state"] == "done" and run_dir.report_page.exists()
    assert "text.exact_match" in capsys.readouterr().out
    (differences,) = compare([run_dir, other]).items
    assert (len(differences.broken), differences.num_right_in_both) == (3, 3)


def test_one_beside_another(here: Path) -> None:
    with ScriptedChatServer(knows) as server:
        run_dir = evaluate(server, "--model", "good", "--beside", "bad")
        assert {r["model"] for r in server.requests} == {"good", "bad"} and len(server.requests) == 2 * NUM_ROWS
    scores = run_dir.load(Scores)
    found = scores.tasks["text"]["exact_match"]
    assert (found["base"], found["tuned"], found["num_fixed"], found["verdict"]) == (0.25, 1.0, 9, "improved")
    page = run_dir.report_page.read_text()
    assert "Evaluation report" in page and "What was trained" not in page and "LoRA" not in page.split("recipe")[0]
    assert f"good at {server.url}" in page and f"bad at {server.url}" in page
    prompts = scores.protocol["tasks"]["text"]["prompts"]
    assert prompts["base"] == prompts["tuned"] and scores.protocol["seed"] == 42
    (line, *_) = [json.loads(line) for line in run_dir.items("text").read_text().splitlines()]
    assert line["base"]["latency_seconds"] > 0 and re.fullmatch("[0-9a-f]{16}", line["prompt_hash"])


def test_a_whole_recipe_and_a_runs_recipe_serve_as_tasks(here: Path) -> None:
    (here / "recipe.yaml").write_text(
        "name: mine\nmodel: base\ndata: {train: rows.jsonl}\ngate: ['improved(evaluate.text.exact_match)']\n"
        "evaluate: {text: {files: [rows.jsonl], metrics: [exact_match], limit: 4}}\n"
    )
    with ScriptedChatServer(knows) as server:
        assert main(["evaluate", "recipe.yaml", "--endpoint", f"{server.url}/v1/", "--model", "good"]) == 0
        first = newest()
        assert first.path.name.endswith("-mine") and first.load(Scores).tasks["text"]["exact_match"]["num_items"] == 4
        assert main(["evaluate", first.path.name, "--endpoint", server.url, "--model", "bad"]) == 0
    assert newest().load(Scores).tasks["text"]["exact_match"]["tuned"] == 0.75


def test_a_judge_without_a_second_model_is_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = "judge: {files: [rows.jsonl], url: 'http://127.0.0.1:1', model: j}"
    (here / "tasks.yaml").write_text(f"evaluate: {{text: {{files: [rows.jsonl], metrics: [exact_match]}}, {judge}}}\n")
    with ScriptedChatServer(knows) as server:
        assert set(evaluate(server, "--model", "good").load(Scores).tasks) == {"text"}
    assert "--beside names a second model" in capsys.readouterr().err


def test_the_key_is_sent_and_written_nowhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", "very-secret-key-0123")

    def guarded(request: Request, number: int) -> Reply | dict[str, Any]:
        key = server.headers[number].get("Authorization")
        return knows(request, number) if key == "Bearer very-secret-key-0123" else Reply(b"no", 401)

    server = ScriptedChatServer(guarded)
    with server:
        evaluate(server, "--model", "good", "--api-key-env", "ENDPOINT_KEY")
        assert len(server.requests) == NUM_ROWS
    for file in (here / "outputs").rglob("*"):
        assert not file.is_file() or b"very-secret-key" not in file.read_bytes(), file


def test_the_only_model_need_not_be_named(here: Path) -> None:
    with ScriptedChatServer(knows, models=("good",)) as server:
        assert evaluate(server).load(Scores).tasks["text"]["exact_match"]["tuned"] == 1.0
        assert {request["model"] for request in server.requests} == {"good"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["tasks.yaml"], 2, "no model is named"),
        (["tasks.yaml", "--model", "x", "--api-key-env", "K"], 2, "no endpoint to send it to"),
        (["tasks.yaml", "--model", "nowhere"], 2, "there is no run 'nowhere'"),
        (["tasks.yaml", "--model", "some:tined"], 2, "no 'tined'"),
        (["no-tasks.yaml", "--endpoint", "URL"], 2, "no `evaluate` section"),
        (["nothing-there", "--endpoint", "URL"], 2, "there is no run 'nothing-there'"),
        (["tasks.yaml", "--endpoint", "URL"], 5, "it serves bad, good"),
        (["tasks.yaml", "--endpoint", "URL", "--model", "good", "--set", "evaluate.txt=1"], 2, "evaluate.text"),
        (["tasks.yaml", "--endpoint", "http://127.0.0.1:1", "--model", "good"], 5, "nobody answers there"),
        (["tasks.yaml", "--endpoint", "not a url", "--model", "good"], 5, "nobody answers there"),
        (["tasks.yaml", "--endpoint", "URL", "--api-key-env", "NOT_SET_HERE"], 4, "NOT_SET_HERE is not set"),
    ],
)
def test_mistakes_are_told(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    (here / "no-tasks.yaml").write_text("seed: 3\n")
    with ScriptedChatServer(knows, models=("bad", "good")) as server:
        assert main(["evaluate", *[server.url if word == "URL" else word for word in words]]) == code
    assert message in capsys.readouterr().err


def test_the_harness_asks_an_endpoint_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = harness_python.write(here / "fake")
    (here / "tasks.yaml").write_text(f"evaluate: {{lm_eval: {{tasks: [fake_a], python: {python}}}}}\n")
    with ScriptedChatServer(knows) as server:
        run_dir = evaluate(server, "--model", "good", "--beside", "bad")
        assert evaluate(server, "--model", "good", "--beside", "bad").path == run_dir.path
        assert harness_python.asked(here / "fake") == ["base fake_a", "tuned fake_a"]
        chat = evaluate(server, "--model", "good", "--set", "evaluate.lm_eval.apply_chat_template=true")
        assert server.requests == []  # the harness is a stand-in, and nobody else has a question
        capsys.readouterr()
        evaluate(server, "--model", "good", "--set", "evaluate.lm_eval.tasks=[fake_choice]", code=2)
        assert "evaluate.lm_eval.tokenizer" in capsys.readouterr().err
        (here / "tasks.yaml").write_text(f"evaluate:\n  lm_eval:\n    python: {python}\n    tasks:\n    - fake_y\n")
        evaluate(server, "--model", "good", code=2)
        told = capsys.readouterr().err
        assert "tasks.yaml:5: lm_eval 0.4.13 has no task, group or tag 'fake_y'" in told and "did you mean" in told
        evaluate(server, "--model", "good", "--set", "evaluate.lm_eval.backend=checkpoint", code=2)
        assert "needs the model's files" in capsys.readouterr().err
    scores = run_dir.load(Scores)
    record = scores.tasks["lm_eval.fake_a"]["exact_match"]
    assert (record["base"], record["tuned"], record["backend"]) == (0.5, 1.0, "endpoint")
    assert scores.protocol["tasks"]["lm_eval.fake_a"]["harness"] == "lm_eval 0.4.13"
    config = yaml.safe_load((run_dir.harness("tuned", "fake_a") / "config.yaml").read_text())
    assert config["model"] == "local-completions" and config["model_args"]["model"] == "good"
    assert config["model_args"]["base_url"] == f"{server.url}/v1/completions"
    config = yaml.safe_load((chat.harness("tuned", "fake_a") / "config.yaml").read_text())
    assert config["model"] == "local-chat-completions"
    assert chat.load(Scores).tasks["lm_eval.fake_a"]["exact_match"]["backend"] == "chat endpoint"
