"""What happens around every verb: closed pipes, full disks, places that cannot be written, names that YAML mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith import stage_process
from tunesmith.cli.app import main
from tunesmith.cli.first_recipe import name_from
from tunesmith.errors import DataError, Interrupted
from tunesmith.recipe.load import load
from tunesmith.track import console
from tunesmith.train.stop import StopSignals

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "tunesmith"]
QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")


@pytest.mark.parametrize("arguments", [["--help"], ["check", QUICKSTART], ["schema"]])
def test_a_reader_that_has_gone_ends_it_quietly(arguments: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([*COMMAND, *arguments], stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["check", QUICKSTART]])
def test_a_full_disk_is_no_bug_of_ours(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith("error: no space left on device\n  → make room on the disk"), done.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    model = ["--set", f"model.name_or_path={ROOT}/quickstart/base"]
    data = ["--set", f"data.train=[{ROOT}/quickstart/data/train.jsonl]"]
    setting = [*model, *data, "--set", f"output_dir={tmp_path}/file/outputs", "--until", "data"]
    for arguments in (["run", QUICKSTART, *setting], ["init", f"{tmp_path}/file/x.yaml"]):
        assert main(arguments) == 4
        told = capsys.readouterr().err
        assert "a bug" not in told and f"{tmp_path}/file" in told and ".tmp" not in told


def test_what_is_said_to_nobody_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        console.say("step 1")
        console.warn("step 2")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())  # what is left in the buffer


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 75, "stopped"),
        (OSError(28, "No space left on device", "/x/y"), 4, "no space left on device"),
        (OSError("no number"), 1, "a bug in tunesmith: OSError: no number"),
        (ZeroDivisionError("by zero"), 1, "a bug in tunesmith: ZeroDivisionError: by zero"),
        (DataError("bad rows"), 3, "bad rows"),
    ],
)
def test_whatever_ends_a_verb_is_one_document_and_one_exit_code(
    raised: BaseException,
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(args: object) -> int:
        raise raised

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("tunesmith.cli.doctor.run_doctor", run)
    assert main(["doctor", "--json"]) == code
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["ok"], document["exit_code"]) == (False, code) and told in document["problems"][0]["what"]
    assert told in err and "Traceback" not in err


def test_no_colour_where_none_is_wanted() -> None:
    def last_words(**environment: str) -> bytes:
        master, slave = os.openpty()
        plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        command = [*COMMAND, "check", "none.yaml"]
        subprocess.run(command, stderr=slave, env=plain | {"TERM": "xterm"} | environment, check=False)
        os.close(slave)
        return os.read(master, 1000)

    assert last_words().startswith(b"\x1b[31merror:")
    assert last_words(NO_COLOR="1").startswith(b"error:") and last_words(TERM="dumb").startswith(b"error:")


@pytest.mark.parametrize("name", ["123.yaml", "true.yaml", "neu ä.yaml", "a: b # c.yaml", "-.yaml", "x" * 90])
def test_a_first_recipe_can_be_read_whatever_its_file_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert main(["init", str(path), "--model", "1e5", "--data", "*.jsonl"]) == 0
    recipe = load(str(path)).recipe
    assert (recipe.name, recipe.model.name_or_path) == (name_from(path.stem), "1e5")
    assert recipe.data.train[0].path == "*.jsonl"


def test_a_name_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "x.yaml"), "--name", "two words"]) == 2
    assert "--name two-words" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "x", "--port", "65536"], "'65536' is not a port: 0 to 65535"),
        (["serve", "x", "--port", "-1"], "'-1' is not a port: 0 to 65535"),
        (["data", "show", QUICKSTART, "-n", "-3"], "'-3' is not a whole number above 0"),
        (["merge", "--adapter", "x", "--out", "y", "--weight", "nan"], "'nan' is not a number"),
        (
            ["bench", "x", "--set", "concurrency=0"],
            "--set bench.concurrency: `bench.concurrency[0]` must be at least 1",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "bench":
        arguments = ["bench", str(ROOT / "quickstart/base"), *arguments[2:]]
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_terminal_that_is_closed_stops_in_order(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup themselves
    stage_process.raise_on_signals()
    with pytest.raises(Interrupted, match="SIGHUP"):
        os.kill(os.getpid(), signal.SIGHUP)
    with StopSignals() as stop, stop.noted():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested == "SIGHUP" and stop.agreed


def test_nohup_stays_in_force(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stage_process.raise_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("arguments", "what", "do"),
    [
        (["run"], "tunesmith run: the following arguments are required: recipe", "`tunesmith run --help`"),
        (["run", "r.yaml", "--unti", "train"], "does not know '--unti'", "did you mean --until?"),
        (["run", "r.yaml", "--learning-rate", "1"], "'--learning-rate'", "with --set train.learning_rate=VALUE"),
        (["run", "r.yaml", "--train.lora.r=8"], "'--train.lora.r=8'", "with --set train.lora.r=VALUE"),
        (["data", "shwo", "r.yaml"], "invalid choice: 'shwo'", "`tunesmith data --help`"),
        (["bfcl", "score", "--category", "x", "--responses", "a", "--out", "b", "--protcol", "c"], "", "--protocol?"),
        (["report", "one", "two"], "tunesmith report does not know 'two'", "`tunesmith report --help`"),
        (["rnu"], "there is no verb 'rnu'", "did you mean `tunesmith run`?"),
    ],
)
def test_arguments_that_do_not_fit_are_told_like_every_mistake(
    arguments: list[str], what: str, do: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    (problem,) = json.loads(out)["problems"]
    assert what in problem["what"] and do in problem["do"]
    assert err == f"error: {problem['what']}\n  → {problem['do']}\n"
