"""`serve`, `chat` and `bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.cli import arguments

if TYPE_CHECKING:
    import argparse


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help="a run, or a model directory (default: latest)")
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")


def add_arguments_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = """\
Serve a run's model, or any model directory, behind an OpenAI-compatible API until Ctrl-C.

vLLM serves where the run's recipe chose it, our own server elsewhere: /v1/chat/completions (streams, tools, logprobs),
/v1/completions (echo, token ids), /v1/models, /health. Any OpenAI client works: set its base URL to what is printed."""
    _add_run(parser)
    parser.add_argument("--base", action="store_true", help="serve the run's base model, not the tuned one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=arguments.port, default=8000, help="port to listen on; 0 takes a free one (default: 8000)"
    )


def run_serve(args: argparse.Namespace) -> int:
    from tunesmith.chat import serve

    return serve(args.run, args.output_dir, base=args.base, host=args.host, port=args.port)


def add_arguments_chat(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.description = """\
Talk to a run's model, or any model directory. Answers are greedy, as the evaluation asks, and shown as they come;
calls look like `→ find(city="Köln")`.

  /result TEXT  answers the oldest open call       /reset  forgets the conversation
  /quit, Ctrl-D ends                               Ctrl-C  stops an answer

Lines that are piped in are asked one after the other; answers alone go to standard output."""
    parser.add_argument("--compare", action="store_true", help="base and tuned model answer side by side")
    parser.add_argument("--message", metavar="TEXT", help="ask this one thing and end")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--tools", metavar="FILE", help="JSON list of tool declarations to offer")


def run_chat(args: argparse.Namespace) -> int:
    from tunesmith.chat import chat

    return chat(
        args.run, args.output_dir, compare=args.compare, message=args.message, system=args.system, tools=args.tools
    )


def add_arguments_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="URL of an endpoint, a run, or a model directory (both are served meanwhile)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a key of the recipe's `bench` section, such as concurrency=1,8 or prompt_tokens=256-1024",
    )
    parser.add_argument("--recipe", metavar="FILE", help="take `bench` from this recipe (default: the run's own)")
    parser.add_argument("--model", metavar="NAME", help="model to ask for (default: the first the endpoint lists)")
    parser.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the key, sent if it is set (default: OPENAI_API_KEY)",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="the model's tokenizer, to check the endpoint's token counts"
    )
    parser.add_argument("--base", action="store_true", help="a run's base model, not the tuned one")
    parser.add_argument("--out", metavar="DIR", help="where result.json and requests.jsonl go (default: below outputs)")
    parser.add_argument("--json", action="store_true", help="print result.json instead of the table")
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")


def run_bench(args: argparse.Namespace) -> int:
    from tunesmith.load_test import Order, bench

    order = {name: value for name, value in vars(args).items() if name in Order.__dataclass_fields__}
    return bench(Order(**order))
