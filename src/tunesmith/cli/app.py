"""The command line: a table of verbs, and what happens around any of them.

`main` imports the one module whose verb was asked for, so that `tunesmith --help` costs little more than Python itself.
No flag mirrors a recipe field: `--set key=value` reaches all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from tunesmith import __version__

if TYPE_CHECKING:
    from tunesmith.cli.parser import Parser
    from tunesmith.errors import TunesmithError


@dataclass(frozen=True)
class Verb:
    """One word of the command line. `module` has `add_arguments_NAME(parser)` and `run_NAME(args) -> exit code`.

    In NAME an underscore stands for a hyphen.
    """

    name: str
    module: str
    summary: str
    examples: tuple[str, ...]
    shown: bool = True

    @property
    def word(self) -> str:
        return self.name.replace("-", "_")


VERBS = (
    Verb(
        "init",
        "recipes",
        "write a first recipe",
        ("tunesmith init", "tunesmith init my.yaml --model Qwen/Qwen2.5-0.5B-Instruct --data rows.jsonl"),
    ),
    Verb(
        "check",
        "recipes",
        "find every mistake in a recipe",
        ("tunesmith check recipe.yaml", "tunesmith check recipe.yaml --set train.lora.r=32 --json"),
    ),
    Verb(
        "plan",
        "recipes",
        "show what a run would do: rows, steps, memory, decisions",
        ("tunesmith plan recipe.yaml", "tunesmith plan recipe.yaml --json"),
    ),
    Verb(
        "run",
        "running",
        "run a recipe, or go on where it stopped",
        (
            "tunesmith run recipe.yaml",
            "tunesmith run recipe.yaml --set train.learning_rate=1e-4",
            "tunesmith run recipe.yaml --until train",
        ),
    ),
    Verb(
        "resume-test",
        "resuming",
        "prove on your recipe that kill and resume equals no kill",
        ("tunesmith resume-test recipe.yaml", "tunesmith resume-test recipe.yaml --steps 20 --kills 3 --json"),
    ),
    Verb(
        "evaluate",
        "evaluating",
        "measure any endpoint, run or model directory, alone or beside another",
        (
            "tunesmith evaluate tasks.yaml --endpoint http://localhost:8000 --model my-model",
            "tunesmith evaluate recipe.yaml --endpoint https://api.example.com/v1 --model large --api-key-env API_KEY",
            "tunesmith evaluate tasks.yaml --model outputs/exports/mine --beside Qwen2.5-0.5B-Instruct/",
            "tunesmith evaluate latest --set evaluate.text.limit=50",
        ),
    ),
    Verb("stage", "running", "run one stage of an existing run (what `run` calls)", ("tunesmith stage merge latest",)),
    Verb(
        "data",
        "data",
        "show rows as the model sees them, convert exports",
        ("tunesmith data show recipe.yaml", "tunesmith data convert export.json --to rows.jsonl"),
    ),
    Verb(
        "merge",
        "merging",
        "fold adapters into their base model, without a GPU",
        (
            "tunesmith merge --base Qwen/Qwen2.5-0.5B-Instruct --adapter my-adapter --out merged",
            "tunesmith merge --adapter a --weight 0.7 --adapter b --weight 0.3 --out both --json",
        ),
    ),
    Verb("runs", "runs", "list runs, or show one", ("tunesmith runs", "tunesmith runs latest --json")),
    Verb(
        "compare",
        "runs",
        "put the numbers of runs side by side",
        (
            "tunesmith compare latest 20260131-142233-mine",
            "tunesmith compare quickstart mine --json",
            "tunesmith compare one two --html compared.html",
        ),
    ),
    Verb(
        "gate",
        "gating",
        "hold rules against a finished run; exit code 6 when one fails",
        (
            "tunesmith gate latest",
            "tunesmith gate latest --rule 'not_regressed(evaluate.text.exact_match, 0.02)'",
            "tunesmith gate latest --numbers",
            "tunesmith gate latest --junit gate.xml --json",
        ),
    ),
    Verb(
        "report",
        "runs",
        "make a run's page again and say where it is",
        ("tunesmith report latest", "tunesmith report latest --markdown > summary.md"),
    ),
    Verb(
        "publish",
        "publishing",
        "hand a run's model to a directory, an S3 bucket or the Hugging Face Hub",
        (
            "tunesmith publish latest --to s3://bucket/models --dry-run",
            "tunesmith publish latest --to hf://owner/name",
            "tunesmith publish latest --to models --even-if-gate-failed",
        ),
    ),
    Verb(
        "serve",
        "serving",
        "serve a run's model behind an OpenAI-compatible API",
        ("tunesmith serve latest", "tunesmith serve latest --base --port 8000"),
    ),
    Verb(
        "chat",
        "serving",
        "talk to a run's model in the terminal",
        ("tunesmith chat latest", "tunesmith chat latest --compare --message 'Book a table'"),
    ),
    Verb(
        "bench",
        "serving",
        "load-test an OpenAI-compatible endpoint, or a run's model",
        (
            "tunesmith bench http://127.0.0.1:8000",
            "tunesmith bench https://api.example.com/v1 --model NAME --set rates=2,4 --set targets.ttft_p95_ms=500",
            "tunesmith bench latest --set concurrency=1,8 --set num_requests=64",
        ),
    ),
    Verb(
        "bfcl",
        "bfcl",
        "score function calls as the Berkeley leaderboard does",
        (
            "tunesmith bfcl score --category simple_python --responses answers.jsonl --out verdicts.jsonl",
            "tunesmith bfcl score --category parallel --protocol fc-openai-tools --responses a.jsonl --out v.jsonl",
            "tunesmith bfcl categories",
        ),
    ),
    Verb(
        "doctor",
        "doctor",
        "say what this machine can do and what is missing",
        ("tunesmith doctor", "tunesmith doctor --json"),
    ),
    Verb(
        "schema", "recipes", "print the recipe's JSON Schema, for editors", ("tunesmith schema > recipe.schema.json",)
    ),
)

EXIT_CODES = """exit codes
  0  done                          4  an extra, a device, a credential or disk space is missing
  1  a bug of tunesmith's          5  a stage could not do its work
  2  the command or the recipe     6  every stage ran; the gate says no
  3  the data                     75  stopped by a signal; the same command goes on"""


def overview() -> str:
    """Return the text of `tunesmith --help`."""
    lines = [
        "tunesmith: from rows of data to a fine-tuned language model in production, from one recipe",
        "",
        "usage: tunesmith VERB [options]        tunesmith VERB --help teaches the verb",
        "",
    ]
    lines += [f"  {verb.name:<11} {verb.summary}" for verb in VERBS if verb.shown]
    lines += [
        "",
        "a first run",
        "  tunesmith init recipe.yaml      write a recipe, then edit it",
        "  tunesmith plan recipe.yaml      see what would happen",
        "  tunesmith run recipe.yaml       do it; the same command continues after any stop",
        "",
        EXIT_CODES,
    ]
    return "\n".join(lines)


def parser_for(verb: Verb) -> Parser:
    """Return the argument parser of one verb, with its examples at the end of the help."""
    from argparse import RawDescriptionHelpFormatter

    from tunesmith.cli.parser import Parser

    examples = "\n".join(f"  {example}" for example in verb.examples)
    parser = Parser(
        prog=f"tunesmith {verb.name}",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    getattr(_module(verb), f"add_arguments_{verb.word}")(parser)
    return parser


def _module(verb: Verb) -> ModuleType:
    return importlib.import_module(f"tunesmith.cli.{verb.module}")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes a message, with --json also a document."""
    from tunesmith.errors import Interrupted, TunesmithError, refused_by_the_machine

    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _unheard()
    except KeyboardInterrupt:
        return _complain(Interrupted("stopped"), as_json=as_json)
    except TunesmithError as error:
        return _complain(error, as_json=as_json)
    except OSError as error:
        problem = refused_by_the_machine(error)
        return _bug(error, as_json=as_json) if problem is None else _complain(problem, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is reported, not dumped on the user
        return _bug(error, as_json=as_json)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"tunesmith {__version__}")
        return 0
    verb = next((verb for verb in VERBS if verb.name == arguments[0]), None)
    if verb is None:
        raise _unknown_verb(arguments[0])
    try:
        args = parser_for(verb).read(arguments[1:])
    except SystemExit as stop:  # --help has been printed
        return int(stop.code or 0)
    return int(getattr(_module(verb), f"run_{verb.word}")(args))


def _unknown_verb(word: str) -> TunesmithError:
    from tunesmith.errors import UsageError, nearest

    guess = nearest(word, [verb.name for verb in VERBS])
    do = f"did you mean `tunesmith {guess}`?" if guess else "`tunesmith --help` lists them"
    return UsageError(f"there is no verb {word!r}", do=do)


def _complain(error: TunesmithError, *, as_json: bool) -> int:
    """Tell an error; return its exit code. A document that nobody takes any more is no second error."""
    from tunesmith.errors import RecipeError
    from tunesmith.recipe.environment import redact

    if as_json:
        problems = error.problems if isinstance(error, RecipeError) else [error]
        _print_problems(
            error.exit_code, [{"what": redact(p.what), "where": p.where, "do": redact(p.do)} for p in problems]
        )
    coloured = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
    red, reset = ("\033[31m", "\033[0m") if coloured else ("", "")
    print(f"{red}error:{reset} {redact(error.render())}", file=sys.stderr)
    return error.exit_code


def _print_problems(exit_code: int, problems: list[dict[str, str]]) -> None:
    import json

    document = {"ok": False, "exit_code": exit_code, "problems": problems}
    with contextlib.suppress(OSError):
        print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


def _unheard() -> int:
    """End quietly: whoever read the output has gone. Says so as every program does that SIGPIPE ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what waits in the buffer is written when Python ends
    return 141


def _bug(error: Exception, *, as_json: bool) -> int:
    """Write the traceback to a file and tell the user where it is."""
    import tempfile
    import traceback

    from tunesmith.recipe.environment import redact

    text = redact("".join(traceback.format_exception(error)))
    if os.environ.get("TUNESMITH_TRACEBACK"):
        print(text, file=sys.stderr)
    with tempfile.NamedTemporaryFile("w", prefix="tunesmith-bug-", suffix=".txt", delete=False) as file:
        file.write(f"tunesmith {__version__}\n{' '.join(sys.argv)}\n\n{text}")
    what = f"a bug in tunesmith: {type(error).__name__}: {redact(str(error))}"
    do = f"please report it with {file.name} (TUNESMITH_TRACEBACK=1 prints it)"
    if as_json:
        _print_problems(1, [{"what": what, "where": "", "do": do}])
    print(f"error: {what}\n  → {do}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
