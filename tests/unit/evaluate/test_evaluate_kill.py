"""`kill -9` in the middle of an evaluation, then the same call: nothing answered is asked again, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.fakes.scripted_chat_server import Reply, Request, ScriptedChatServer, completion

ROOT = Path(__file__).parents[3]
EVALUATE = """
import json, sys
from pathlib import Path
from tunesmith.artifacts import Endpoint, Weights
from tunesmith.evaluate import stage
from tunesmith.recipe.schema import Data, Evaluate, Model, Recipe, TextTask
from tunesmith.store.run_dir import RunDir

class Serving:
    def endpoint(self, which):
        return Endpoint(sys.argv[1], which, "scripted", which)

here = Path(sys.argv[2])
run_dir = RunDir(here / "run")
run_dir.write_run({"lineage": {"model": {"weights": "w", "rest": "r"}}})
run_dir.save(Weights("merge/model", "base", {"model.safetensors": "abc"}, 3))
task = TextTask((str(here / "rows.jsonl"),), ("exact_match",))
evaluate = Evaluate(text=task, concurrency=4)
recipe = Recipe("r", Model("base"), Data(()), output_dir=str(here / "outputs"), evaluate=evaluate)
print(json.dumps(stage.run(recipe, run_dir, Serving()).to_json()))
"""
NUM_ROWS = 60


def test_kill_and_go_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(NUM_ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    enough = threading.Event()

    def script(request: Request, number: int) -> Reply | dict[str, Any]:
        if number == NUM_ROWS + 20:  # all of base, a third of tuned
            enough.set()
        if number >= NUM_ROWS + 20 and not second_time:
            return Reply(b"", wait_seconds=30)
        return completion(request["messages"][0]["content"].split()[1])

    second_time = False
    with ScriptedChatServer(script) as server:
        command = [sys.executable, "-c", EVALUATE, server.url, str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
        first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert enough.wait(30)
        time.sleep(0.3)  # what was answered before is written by now
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=30)
        second_time = True
        num_before = len(server.requests)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        asked_again = server.requests[num_before:]
    assert {request["model"] for request in asked_again} == {"tuned"}
    assert len(asked_again) == NUM_ROWS - 20
    found = json.loads(done.stdout)["tasks"]["text"]["exact_match"]
    assert (found["base"], found["tuned"], found["num_pairs"]) == (1.0, 1.0, NUM_ROWS)
    assert len((tmp_path / "run/evaluate/text.items.jsonl").read_text().splitlines()) == NUM_ROWS
