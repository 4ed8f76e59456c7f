"""The room's door against a stand-in for the harness's interpreter: what is asked, kept, told and left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import harness_python
from tests.fakes.scripted_chat_server import Reply, ScriptedChatServer
from tunesmith.artifacts import Endpoint, Scores, Weights, Which
from tunesmith.errors import EnvironmentProblem, EvaluateError, RecipeError
from tunesmith.evaluate import stage
from tunesmith.evaluate.lm_eval import process, programs
from tunesmith.evaluate.lm_eval.measure import check_logprobs
from tunesmith.recipe.schema import Data, Evaluate, LmEval, Model, Recipe
from tunesmith.store.run_dir import RunDir

EVERYTHING = [f"{which} fake_{task}" for which in ("base", "tuned") for task in "abc"]


class NoServing:
    def endpoint(self, which: str) -> Endpoint:
        raise AssertionError("no server is needed")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_run({"lineage": {"model": {"weights": "w1", "rest": "r1"}}})
    run_dir.save(Weights("merge/model", "base", {"model.safetensors": "abc"}, 3))
    return run_dir


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    harness_python.write(tmp_path / "fake")
    return tmp_path / "fake"


def recipe(fake: Path, *tasks: str, **settings: Any) -> Recipe:
    harness = LmEval(tasks or ("fake_a", "fake_b", "fake_c"), backend="checkpoint", python=str(fake / "python"))
    model = Model(str(fake.parent / "base"), dtype="float32")
    evaluate = Evaluate(lm_eval=LmEval(**(vars_of(harness) | settings)))
    return Recipe("r", model, Data(()), output_dir=str(fake.parent / "outputs"), evaluate=evaluate)


def vars_of(harness: LmEval) -> dict[str, Any]:
    return {field.name: getattr(harness, field.name) for field in dataclasses.fields(harness)}


def run(fake: Path, run_dir: RunDir, *tasks: str, **settings: Any) -> Scores:
    return stage.run(recipe(fake, *tasks, **settings), run_dir, NoServing())


def test_base_and_tuned_are_measured_and_compared(fake: Path, run_dir: RunDir) -> None:
    scores = run(fake, run_dir)
    assert harness_python.asked(fake) == EVERYTHING
    record = scores.tasks["lm_eval.fake_b"]["exact_match"]
    assert (record["base"], record["tuned"], record["num_fixed"], record["num_broken"]) == (0.5, 1.0, 4, 0)
    assert (record["p_value"], record["verdict"], record["num_pairs"]) == (0.125, "cannot tell", 8)
    assert (record["base_stderr"], record["backend"], record["harness"]) == (0.1, "checkpoint", "lm_eval 0.4.13")
    assert scores.num_unanswered == 0


def test_nothing_is_done_twice_and_changes_are_seen(fake: Path, run_dir: RunDir) -> None:
    run(fake, run_dir)
    run(fake, run_dir)
    assert harness_python.asked(fake) == EVERYTHING
    run(fake, run_dir, "fake_c", "fake_choice")  # one known, one new
    assert harness_python.asked(fake)[6:] == ["base fake_choice", "tuned fake_choice"]
    run(fake, run_dir, num_fewshot=3)
    assert harness_python.asked(fake)[8:] == EVERYTHING
    run_dir.save(Weights("merge/model", "base", {"model.safetensors": "trained again"}, 3))
    run(fake, run_dir, num_fewshot=3)
    assert harness_python.asked(fake)[14:] == EVERYTHING[3:]


def test_another_run_finds_the_base_model_measured(fake: Path, run_dir: RunDir, tmp_path: Path) -> None:
    first = run(fake, run_dir)
    other = RunDir(tmp_path / "other")
    other.write_run(run_dir.read_run())
    other.save(Weights("merge/model", "base", {"model.safetensors": "another training"}, 3))
    second = run(fake, other)
    assert harness_python.asked(fake)[6:] == EVERYTHING[3:]
    assert second.tasks == first.tasks  # the stand-in scores every tuned model alike
    assert (other.harness("base", "fake_a") / "results.json").is_file()


class Endpoints:
    """Two endpoints, one after the other."""

    def __init__(self) -> None:
        self.num_asked = 0

    def endpoint(self, which: Which) -> Endpoint:
        self.num_asked += 1
        return Endpoint(f"http://127.0.0.1:{self.num_asked}", "m", "embedded", which, api_key="${env:A_KEY}")


def test_an_endpoint_that_died_is_started_again(fake: Path, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "somebody else's")
    (fake / "fake_b.py").write_text(
        "if ':1/' in config['model_args']['base_url']: print('connection refused'); sys.exit(1)\n"
        "(HERE / 'key').write_text(os.environ['OPENAI_API_KEY'])\n"
    )
    serving = Endpoints()
    asks = recipe(fake, backend="endpoint")
    assert asks.evaluate is not None
    asks = dataclasses.replace(asks, evaluate=dataclasses.replace(asks.evaluate, base_model=False, concurrency=5))
    scores = stage.run(asks, run_dir, serving)
    assert serving.num_asked == 2 and len(scores.tasks) == 3
    assert harness_python.asked(fake) == [f"tuned fake_{task}" for task in "abcb"]
    assert (fake / "key").read_text() == "secret-key"
    config = (run_dir.harness("tuned", "fake_b") / "config.yaml").read_text()
    assert "num_concurrent: 5" in config and "secret" not in config


def test_a_task_that_fails_costs_its_own_numbers_only(
    fake: Path, run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake / "fake_b.py").write_text("print('the data set is gone', file=sys.stderr); sys.exit(3)")
    scores = run(fake, run_dir)
    assert harness_python.asked(fake) == EVERYTHING
    assert sorted(scores.tasks) == ["lm_eval.fake_a", "lm_eval.fake_c"]
    assert scores.num_unanswered == 2 and scores.failures["lm_eval.fake_b"]["tuned"] == {"harness_failed": 1}
    told = capsys.readouterr().err
    assert "could not finish fake_b with the base model" in told and "the data set is gone" in told

    (fake / "fake_b.py").unlink()
    assert sorted(run(fake, run_dir).tasks) == ["lm_eval.fake_a", "lm_eval.fake_b", "lm_eval.fake_c"]
    assert harness_python.asked(fake)[6:] == ["base fake_b", "tuned fake_b"]


def test_when_everything_fails_the_stage_does(fake: Path, run_dir: RunDir) -> None:
    (fake / "fake_a.py").write_text("print('no such model', flush=True); os._exit(1)")
    with pytest.raises(EvaluateError) as caught:
        run(fake, run_dir, "fake_a")
    assert "no such model" in caught.value.what and "harness.log" in caught.value.what


def test_the_configuration_is_the_harness_s_own(fake: Path, run_dir: RunDir) -> None:
    import yaml

    settings = {"limit": 5, "gen_kwargs": {"max_gen_toks": 7}, "extra": {"system_instruction": "yes"}, "num_fewshot": 0}
    run(fake, run_dir, "fake_a", **settings)
    config = yaml.safe_load((run_dir.harness("tuned", "fake_a") / "config.yaml").read_text())
    assert config["model"] == "hf" and config["model_args"]["dtype"] == "float32"
    assert config["model_args"]["pretrained"] == str(run_dir.path.absolute() / "merge" / "model")
    assert (config["limit"], config["num_fewshot"], config["system_instruction"]) == (5, 0, "yes")
    assert config["gen_kwargs"] == {"max_gen_toks": 7} and config["apply_chat_template"] is False
    assert config["log_samples"] is True and "confirm_run_unsafe_code" not in config


def test_programs_are_scored_in_the_sandbox(fake: Path, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for the scoring tries to do harm; what is outside stays, and the harness's files come back."""
    monkeypatch.setenv("HF_HOME", str(fake / "hf" / "not-there-yet"))
    canary = fake / "canary"
    canary.write_text("alive")
    (fake / "fake_code.py").write_text(
        "found = {'answers': Path(config['use_cache'] + '_rank0.db').read_bytes().decode(), 'model': config['model']}\n"
        "try:\n    (HERE / 'canary').write_text('dead')\nexcept OSError as error:\n    found['canary'] = str(error)\n"
        "found['environment'] = dict(os.environ)\n"
        "(Path(os.environ['HF_HOME']) / 'lock').write_text('')\n"
        "(directory / 'samples.jsonl.told').write_text(json.dumps(found))\n"
        "print('told', json.dumps(found), flush=True)\n"
    )
    scores = run(fake, run_dir, "fake_a", "fake_code", allow_code_execution=True)
    assert harness_python.asked(fake) == ["base fake_a", "base fake_code", "tuned fake_a", "tuned fake_code"]
    record = scores.tasks["lm_eval.fake_code"]["exact_match"]
    log = (run_dir.harness("tuned", "harness.log")).read_text()
    found = json.loads(next(line for line in log.splitlines() if line.startswith("told"))[5:])
    assert (found["answers"], found["model"]) == ("answers", "local-completions")
    assert "HF_TOKEN" not in found["environment"] and found["environment"]["HF_ALLOW_CODE_EVAL"] == "1"
    if record["sandbox"] != "limits only":
        assert canary.read_text() == "alive" and "Read-only" in found["canary"]
        assert str(record["sandbox"]).startswith("no network")
        assert list((fake / "hf" / "not-there-yet").iterdir()) == []
    assert "sandbox" not in scores.tasks["lm_eval.fake_a"]["exact_match"]
    run(fake, run_dir, "fake_code", allow_code_execution=True)
    assert len(harness_python.asked(fake)) == 4


@pytest.mark.parametrize(
    "mischief",
    [
        "(directory / 'results.json').symlink_to('/etc/passwd')",
        "os.mkfifo(directory / 'results.json')",
        "(directory / 'samples.jsonl').symlink_to(HERE / 'python')",
    ],
)
def test_what_comes_out_of_the_sandbox_is_plain_files(fake: Path, run_dir: RunDir, mischief: str) -> None:
    done = "{'version': '0.4.13', 'results': 'results.json', 'samples': {task: 'samples.jsonl'}}"
    finish = f"\n(directory / 'done.json').write_text(json.dumps({done}))\nsys.exit(0)\n"
    (fake / "fake_code.py").write_text(mischief + finish)
    with pytest.raises(EvaluateError, match="could not finish fake_code"):
        run(fake, run_dir, "fake_code", allow_code_execution=True)
    assert not (run_dir.harness("base", "fake_code") / "done.json").exists()


def test_names_out_of_the_sandbox_stay_in_their_directory(fake: Path, run_dir: RunDir) -> None:
    done = "{'version': '', 'results': '../../../../run.json', 'samples': {}}"
    program = f"(directory / 'done.json').write_text(json.dumps({done}))\nsys.exit(0)\n"
    (fake / "fake_code.py").write_text(program)
    before = run_dir.run_json.read_bytes()
    with pytest.raises(EvaluateError, match="no file names"):
        run(fake, run_dir, "fake_code", allow_code_execution=True)
    assert run_dir.run_json.read_bytes() == before


def test_caches_are_where_the_libraries_look_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_EVALUATE_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "cache" / "huggingface"
    assert programs.caches()["HF_HOME"] == str(home) and programs.caches()["HF_MODULES_CACHE"] == str(home / "modules")
    assert programs.outermost(programs.caches().values()) == [str(home)]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "homework"))
    assert programs.outermost(programs.caches().values()) == [str(tmp_path / "home"), str(tmp_path / "homework")]


def test_programs_need_leave_and_one_answer_each(fake: Path, run_dir: RunDir) -> None:
    with pytest.raises(RecipeError, match="runs programs that the model writes"):
        run(fake, run_dir, "fake_code")
    with pytest.raises(RecipeError, match="drawn anew each time"):
        run(fake, run_dir, "fake_drawn", allow_code_execution=True)
    with pytest.raises(RecipeError, match="drawn anew each time"):
        run(fake, run_dir, "fake_code", allow_code_execution=True, gen_kwargs={"do_sample": True})
    assert harness_python.asked(fake) == []


def test_an_unknown_task_stops_before_anything_runs(fake: Path, run_dir: RunDir) -> None:
    with pytest.raises(RecipeError, match="did you mean fake_"):
        run(fake, run_dir, "fake_d")
    assert harness_python.asked(fake) == []


def test_an_interpreter_that_is_not_there(fake: Path, run_dir: RunDir) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be started"):
        run(fake, run_dir, python=str(fake / "nowhere"))
    bare = fake / "bare"
    bare.write_text(f"#!{sys.executable}\nimport sys\nsys.exit(1)\n")
    bare.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="not installed"):
        run(fake, run_dir, python=str(bare))


def test_killed_in_the_middle_it_goes_on_and_leaves_no_process(fake: Path, run_dir: RunDir) -> None:
    (fake / "fake_b.py").write_text("Path(HERE / 'pid').write_text(str(os.getpid())); time.sleep(60)")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.unit.evaluate.test_lm_eval_measure import run, RunDir\n"
        "run(Path(sys.argv[1]), RunDir(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(fake), str(run_dir.path)]
    for number in (signal.SIGKILL, signal.SIGINT):
        (fake / "pid").unlink(missing_ok=True)
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        harness = int(wait_for(fake / "pid"))
        first.send_signal(number)
        first.wait(30)
        limit = time.monotonic() + 20
        while alive(harness) and time.monotonic() < limit:
            time.sleep(0.05)
        assert not alive(harness)
    (fake / "fake_b.py").unlink()
    run(fake, run_dir)
    assert harness_python.asked(fake) == ["base fake_a", "base fake_b", "base fake_b", *EVERYTHING[1:]]


def wait_for(path: Path) -> str:
    limit = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return path.read_text()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_progress_is_read_from_the_harness_s_bars() -> None:
    with process.Follower("tuned") as follower:
        follower.feed(b"@ task gsm8k\nloading\rRunning generate_until requests:  20%|##    | 2/10 [00:01<")
        follower.feed(b"00:04,  2.00it/s]\rRunning generate_until requests:  70%|##    | 7/10 [00:03<00:01]\r")
        assert follower._bar is not None
        assert (follower._bar.title, follower._bar.done, follower._bar.total) == ("tuned gsm8k", 7, 10)
        follower.feed(b"Checking cached requests:  70%|##    | 9/9 [00:03<00:01]\nTraceback\n  boom\n")
        assert follower._bar.done == 7
    assert follower.last_lines().split() == ["loading", "Traceback", "boom"]


def test_whatever_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(str(p.pid))"
    process.run([sys.executable, "-c", child, str(tmp_path / "pid")], tmp_path / "log", {}, title="t")
    limit = time.monotonic() + 10
    while alive(int((tmp_path / "pid").read_text())) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_signal_is_told(tmp_path: Path) -> None:
    with pytest.raises(process.HarnessFailed, match="signal 9"):
        kill = f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})"
        process.run([sys.executable, "-c", kill], tmp_path / "log", dict(os.environ), title="t")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Reply(b'{"choices": [{"text": "a", "logprobs": null}]}'), "TypeError"),
        (Reply(b'{"choices": [{"logprobs": {"token_logprobs": [-1.0]}}]}'), "its own tokens only"),
        (Reply(b"{}", status=404), "404"),
        (Reply(b"<html>"), "JSONDecodeError"),
    ],
)
def test_an_endpoint_without_log_probabilities_is_refused(answer: Reply, reason: str) -> None:
    with ScriptedChatServer(lambda request, number: answer) as server, pytest.raises(EvaluateError) as caught:
        check_logprobs(server.endpoint("tuned"))
    assert reason in caught.value.what and "backend: checkpoint" in caught.value.do
