"""`python -m tunesmith.serve.embedded`: load a checkpoint, then serve it until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import gc
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, ServeError, TunesmithError, missing_extra

if TYPE_CHECKING:
    from tunesmith.serve.embedded.batch import Batch


def main(argv: list[str] | None = None) -> int:
    """Run the server; return the exit code of `errors`."""
    args = _parser().parse_args(argv)
    try:
        return _serve(args)
    except TunesmithError as error:
        print(f"error: {error.render()}", file=sys.stderr, flush=True)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tunesmith.serve.embedded", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="checkpoint directory")
    parser.add_argument("--served-model-name", help="name that requests give (default: the directory's name)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, help="longest prompt plus answer in tokens")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_argument("--chat-template", default="model", help="`model`, a name, or a Jinja file")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="answers generated at once; more wait")
    parser.add_argument(
        "--kv-cache-gib", type=float, help="memory for keys and values (default: a quarter of what is free)"
    )
    return parser


def _serve(args: argparse.Namespace) -> int:
    started = time.monotonic()
    if not (args.model / "config.json").is_file():
        raise ModelError("there is no config.json here", where=str(args.model), do="give a model directory")
    # Before the slow part: a port that is taken shows at once, and early clients wait in the queue.
    listener = _listen(args.host, args.port)
    try:
        import uvicorn

        from tunesmith.serve.embedded.app import App
        from tunesmith.serve.embedded.batch import Batch
        from tunesmith.serve.embedded.checkpoint import LoadOptions, load
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "serve", needed_for="the embedded server") from None
    options = LoadOptions(
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
        max_model_len=args.max_model_len,
        max_rows=args.max_num_seqs,
        kv_cache_gib=args.kv_cache_gib,
    )
    checkpoint = load(args.model, options)
    limits = checkpoint.limits
    name = args.served_model_name or args.model.resolve().name
    print(
        f"serving {name} ({checkpoint.model.config.model_type}, {checkpoint.model.dtype}, {checkpoint.model.device}, "
        f"up to {checkpoint.max_model_len} tokens, {limits.max_rows} answers at once, keys and values up to "
        f"{limits.max_cells * limits.cell_bytes / 2**30:.1f} GiB) on http://{args.host}:{listener.getsockname()[1]} "
        f"after {time.monotonic() - started:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    batch = Batch(checkpoint.model, limits)
    config = uvicorn.Config(
        App(checkpoint, name, batch), log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2
    )
    _run(uvicorn.Server(config), listener, batch)
    return 0


def _run(server: Any, listener: socket.socket, batch: Batch) -> None:
    """Talk HTTP in a second thread, and generate in this one, until a signal comes."""
    # Both share the interpreter: short turns keep the first from waiting for the second.
    sys.setswitchinterval(0.001)
    gc.freeze()  # what is loaded stays: the collector need not look at it again

    def leave(number: int, frame: object) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    def talk() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            batch.close()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    talking = threading.Thread(target=talk, name="http", daemon=True)
    talking.start()
    batch.run()
    talking.join()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        where = f"{host}:{port}"
        raise ServeError(f"cannot listen: {error.strerror or error}", where=where, do="choose another port") from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
