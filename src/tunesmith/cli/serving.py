"""`serve` and `chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help="a run, or a model directory (default: latest)")
    parser.add_argument("--output-dir", default="outputs", help="where runs are (default: outputs)")


def add_arguments_serve(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--base", action="store_true", help="serve the run's base model, not the tuned one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")


def run_serve(args: argparse.Namespace) -> int:
    from tunesmith.chat import serve

    return serve(args.run, args.output_dir, base=args.base, host=args.host, port=args.port)


def add_arguments_chat(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--compare", action="store_true", help="let the base model answer, too")
    parser.add_argument("--message", metavar="TEXT", help="ask this one thing and end")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--tools", metavar="FILE", help="JSON list of tool declarations to offer")


def run_chat(args: argparse.Namespace) -> int:
    from tunesmith.chat import chat

    return chat(
        args.run, args.output_dir, compare=args.compare, message=args.message, system=args.system, tools=args.tools
    )
