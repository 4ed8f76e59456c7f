"""Preparation of chat rows: the data stage beside the bare tokenizers library and TRL, and how it grows with the rows.

    python benchmarks/prepare_vs_peers.py --data ../shared/data [--rows 10000 100000 1000000] [--peer-rows 50000]

Rows are recombined from real ones (word problems, instructions, tool conversations), with fresh numbers, by a seed.
Everything runs in turn, each in a process of its own, and is timed twice:

* the whole command: from the start of its process to a finished data set on disk. Ours is `tunesmith run RECIPE --until
  data` to its exit, caches empty. TRL's imports what it needs, reads the file into a `datasets.Dataset`, makes an
  `SFTTrainer` with a model of no size, and is done when that has prepared its rows (chat template, tokens, assistant
  mask), which `datasets` has then written to its cache; it is not charged for the rest of its process;
* the work alone: ours by the run's own record of the data stage, which holds its imports, the tokenizer's loading and
  the hashes of what was read and written; TRL's inside `SFTTrainer`'s preparation; of the tokenizers library, at its
  fastest batch call and batch size on texts already rendered, only encoding. Its command is not timed.

Targets: 70 % of the bare library's rows per second by our whole command, and 3× TRL's either way. Exits 1 when one is
missed or when token counts differ.
CPU time, of all threads and processes, says the same where others compute on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
TUNESMITH = str(Path(sys.executable).parent / "tunesmith")
MAX_LENGTH = 4096  # longer than any of the rows: nothing is cut by one and dropped by another
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a patient teacher: explain each step, then give the result.",
    "Answer briefly and precisely. If you do not know, say so.",
    "Du bist ein höflicher Assistent – antworte in der Sprache der Frage.",
)

Message = dict[str, str]
_NUMBER = re.compile(r"\d+")


# Rows


def exchanges(data: Path) -> tuple[list[list[Message]], list[list[Message]]]:
    """Return questions with their answers, and conversations with tools, as texts in `messages` form."""
    plain, tools = [], []
    for row in json.loads((data / "sft/alpaca_en_demo.json").read_text(encoding="utf-8")):
        question = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        plain.append(_exchange(question, row["output"]))
    for line in (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        plain.append(_exchange(row["question"], row["answer"]))
    for row in json.loads((data / "sft/glaive_toolcall_en_demo.json").read_text(encoding="utf-8")):
        declared = f"You may call these tools: {row['tools']}" if row["tools"] != "[]" else SYSTEMS[0]
        messages = [{"role": "system", "content": declared}]
        tools.append([*messages, *(_spoken(turn["from"], turn["value"]) for turn in row["conversations"])])
    return plain, tools


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _spoken(role: str, text: str) -> Message:
    """Return a turn as text: columns of records with ever other fields are read differently by each library."""
    if role == "function_call":
        text = f"<tool_call>\n{text}\n</tool_call>"
    elif role == "observation":
        text = f"<tool_response>\n{text}\n</tool_response>"
    return {"role": "user" if role in ("human", "observation") else "assistant", "content": text}


def rows(data: Path, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows without end, no two equal; the first N are the same for every N."""
    plain, tools = exchanges(data)
    draw = random.Random(seed)
    seen: set[bytes] = set()
    while True:
        if draw.random() < 0.15:
            messages = draw.choice(tools) + draw.choice(plain)
        else:
            messages = [message for _ in range(draw.choice((1, 1, 2, 3))) for message in draw.choice(plain)]
            if draw.random() < 0.25:
                messages = [{"role": "system", "content": draw.choice(SYSTEMS)}, *messages]
        row = {"messages": [{"role": m["role"], "content": _renumbered(m["content"], draw)} for m in messages]}
        digest = hashlib.blake2b(repr(row).encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            yield row


def _renumbered(text: str, draw: random.Random) -> str:
    """Give every number other digits, as many as it had: rows are then distinct, words are not."""
    return _NUMBER.sub(lambda found: str(int(draw.random() * 10 ** min(len(found[0]), 15))), text)


def write_rows(path: Path, data: Path, num_rows: int) -> None:
    """Write the first rows, one at a time."""
    with path.open("w", encoding="utf-8") as file:
        for _, row in zip(range(num_rows), rows(data), strict=False):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# Processes


@dataclass(frozen=True)
class Measured:
    """What a process answered and cost."""

    answer: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_mib: float
    alone_seconds: float = 0.0  # of the work, without the start
    peak_own_mib: float = 0.0  # without pages of files, which the system takes back when it needs them


def measured(command: list[str]) -> Measured:
    """Run a command that prints JSON last; its wall time, and the peak memory of it and its children together."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        peak_mib = peak_own_mib = 0.0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak_mib = max(peak_mib, resident_mib(process.pid))
            peak_own_mib = max(peak_own_mib, resident_mib(process.pid, "RssAnon"))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-4000:]}")
        text = output.read()
    peak_mib = max(peak_mib, usage.ru_maxrss / 1024)
    answer, cpu = json.loads(text[text.index("{") :]), usage.ru_utime + usage.ru_stime
    return Measured(answer, seconds, cpu, peak_mib, peak_own_mib=peak_own_mib)


def resident_mib(pid: int, kind: str = "VmRSS") -> float:
    """Return the resident memory of a process and all below it; pages they share count once for each."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return 0.0
    own = re.search(rf"{kind}:\s+(\d+)", status)
    return (int(own[1]) / 1024 if own else 0.0) + sum(resident_mib(int(child), kind) for child in children)


def ours(file: Path, model: Path, out: Path) -> Measured:
    """Run the data stage as a person would; `seconds` is that of the whole command."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    data = {"train": str(file), "max_length": MAX_LENGTH, "chat_template": "model"}
    recipe = {"name": "prepare", "model": str(model), "output_dir": str(out), "data": data}
    (out / "prepare.yaml").write_text(yaml.safe_dump(recipe))
    done = measured([TUNESMITH, "run", str(out / "prepare.yaml"), "--until", "data", "--json"])
    stages = json.loads((Path(done.answer["run"]) / "run.json").read_text())["stages"]
    return dataclasses.replace(done, answer=done.answer["records"]["dataset"], alone_seconds=stages["data"]["seconds"])


def peer(name: str, file: Path, model: Path, *arguments: str) -> Measured:
    """Run a peer in this script's own child; when it was done, and what it took alone, it says itself."""
    started = time.time()
    done = measured([sys.executable, __file__, "--peer", name, str(file), str(model), *arguments])
    answer = done.answer
    whole = answer["done_at"] - started if "done_at" in answer else float("nan")
    return dataclasses.replace(done, seconds=whole, cpu_seconds=answer["cpu_seconds"], alone_seconds=answer["seconds"])


# Peers, each in its own process


def cpu_seconds() -> float:
    """Return what this process has computed so far, with all its threads and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def bare_tokenizers(file: Path, model: Path) -> dict[str, Any]:
    """Time encoding alone, with the call and the batch size that were fastest on the first rows."""
    from tokenizers import Tokenizer

    from tunesmith.tokens.chat import render
    from tunesmith.tokens.templates import template_for
    from tunesmith.tokens.tokenizer import load_tokenizer

    template = template_for(load_tokenizer(model), "model")
    with file.open(encoding="utf-8") as lines:
        texts = [render(template, json.loads(line)["messages"]) for line in lines]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def encoded(call: Callable[..., Any], size: int, chosen: list[str]) -> tuple[float, float, int]:
        seconds, cpu, num_tokens = 0.0, 0.0, 0
        for begin in range(0, len(chosen), size):
            batch = chosen[begin : begin + size]
            started, cpu_started = time.perf_counter(), cpu_seconds()
            encodings = call(batch, add_special_tokens=False)
            seconds += time.perf_counter() - started
            cpu += cpu_seconds() - cpu_started
            num_tokens += sum(map(len, encodings))
        return seconds, cpu, num_tokens

    calls = {"encode_batch": tokenizer.encode_batch, "encode_batch_fast": tokenizer.encode_batch_fast}
    encoded(tokenizer.encode_batch_fast, 512, texts[:5000])  # warms the library's cache of words
    trials = {
        (name, size): min(encoded(call, size, texts[:5000])[0] for _ in range(2))
        for name, call in calls.items()
        for size in (128, 512, 2048, 5000)
    }
    name, size = min(trials, key=lambda trial: trials[trial])
    seconds, cpu, num_tokens = encoded(calls[name], size, texts)
    setting = f"{name}, {size} texts at a time"
    return {"seconds": seconds, "cpu_seconds": cpu, "num_tokens": num_tokens, "setting": setting}


def trl(file: Path, model: Path, num_processes: int) -> dict[str, Any]:
    """Time what SFTTrainer does to its rows before the first step."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        import datasets
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
        from trl import SFTConfig, SFTTrainer

        datasets.disable_progress_bars()
        spent: list[tuple[float, float]] = []
        done_at: list[float] = []

        class Timed(SFTTrainer):
            def _prepare_dataset(self, *arguments: Any, **named: Any) -> Any:
                started, cpu_started = time.perf_counter(), cpu_seconds()
                prepared = super()._prepare_dataset(*arguments, **named)
                spent.append((time.perf_counter() - started, cpu_seconds() - cpu_started))
                done_at.append(time.time())
                return prepared

        tokenizer = AutoTokenizer.from_pretrained(model)
        shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = LlamaConfig(**shape, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        dataset = datasets.load_dataset("json", data_files=str(file), split="train")
        settings = SFTConfig(
            output_dir=f"{cache}/out",
            max_length=MAX_LENGTH,
            assistant_only_loss=True,
            dataset_num_proc=num_processes if num_processes > 1 else None,
            packing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        )
        model_of_no_size = LlamaForCausalLM(config)
        trainer = Timed(model_of_no_size, settings, train_dataset=dataset, processing_class=tokenizer)
        batches = trainer.train_dataset.with_format("numpy").iter(1000)
        num_tokens = sum(len(ids) for batch in batches for ids in batch["input_ids"])
        return {
            "seconds": sum(seconds for seconds, _ in spent),
            "cpu_seconds": sum(cpu for _, cpu in spent),
            "done_at": done_at[-1],
            "num_tokens": num_tokens,
            "setting": f"{num_processes} processes",
        }


# Report

TIMED = ("seconds", "alone_seconds", "cpu_seconds")


def best(runs: list[Measured], what: str) -> float:
    return min(float(getattr(run, what)) for run in runs)


def timed(name: str, runs: list[Measured], what: str) -> str:
    """Return the best time of several runs, and all of them."""
    if best(runs, what) != best(runs, what):  # it has none
        return f"{name} {'':<26}"
    every = ", ".join(f"{getattr(run, what):.2f}" for run in runs)
    return f"{name} {best(runs, what):6.2f} s ({every})"


def compare(given: argparse.Namespace, model: Path) -> bool:
    """Print the three side by side; return whether the targets are met and the tokens are the same."""
    file = given.out / f"rows-{given.peer_rows}.jsonl"
    write_rows(file, given.data, given.peer_rows)
    runs: dict[str, list[Measured]] = {"ours": [], "tokenizers": [], "trl 1": [], "trl 2": []}
    for _ in range(given.runs):
        runs["ours"].append(ours(file, model, given.out / "run"))
        runs["tokenizers"].append(peer("tokenizers", file, model))
        if not given.skip_trl:
            runs["trl 1"].append(peer("trl", file, model, "1"))
            runs["trl 2"].append(peer("trl", file, model, "2"))
    print(
        f"{given.peer_rows:,} rows, {file.stat().st_size / 2**20:,.0f} MiB; the best of {given.runs} runs (all of them)"
    )
    whole, alone, cpu = ({name: best(done, what) for name, done in runs.items() if done} for what in TIMED)
    for name, done in runs.items():
        if not done:
            continue
        print(f"{name:<11} {timed('whole command', done, 'seconds')}   {timed('alone', done, 'alone_seconds')}")
        peak = max(one.peak_mib for one in done)
        rate = given.peer_rows / alone[name]
        tokens_rate = done[0].answer["num_tokens"] / alone[name]
        about = f"{rate:7,.0f} rows/s {tokens_rate:11,.0f} tokens/s alone"
        print(f"{'':<11} {about}  CPU {1e6 * cpu[name] / given.peer_rows:6.0f} µs/row  peak {peak:5,.0f} MiB")
        if "setting" in done[0].answer:
            print(f"{'':<11} {done[0].answer['setting']}")
    counts = runs["ours"][0].answer["counts"]
    fates = ", ".join(f"{count:,} {fate}" for fate, count in counts.items() if count)
    print(f"rows of ours: {fates}")
    strict, lone = alone["tokenizers"] / whole["ours"], alone["tokenizers"] / alone["ours"]
    of_cpu = cpu["tokenizers"] / cpu["ours"]
    print(
        f"ours / tokenizers: our whole command {strict:.2f} (target 0.70), alone {lone:.2f}, of CPU time {of_cpu:.2f}"
    )
    good = strict >= 0.7
    if not given.skip_trl:
        trl = ("trl 1", "trl 2")
        commands, lone = (min(times[name] for name in trl) / times["ours"] for times in (whole, alone))
        of_cpu = min(cpu[name] for name in trl) / cpu["ours"]
        print(f"ours / TRL: whole commands {commands:.1f}, alone {lone:.1f} (target 3), of CPU time {of_cpu:.1f}")
        good &= commands >= 3 and lone >= 3
    counted = {name: done[0].answer["num_tokens"] for name, done in runs.items() if done}
    if len(set(counted.values())) > 1:
        print(f"the token counts differ: {counted}")
        good = False
    return good


def scale(given: argparse.Namespace, model: Path) -> bool:
    """Print time and memory for growing numbers of rows; return whether memory stays under 2 GiB."""
    good = True
    print(f"{'rows':>11} {'MiB':>7} {'seconds':>9} {'rows/s':>9} {'CPU µs/row':>11} {'peak MiB':>9}")
    for num_rows in given.rows:
        file = given.out / f"rows-{num_rows}.jsonl"
        write_rows(file, given.data, num_rows)
        done = ours(file, model, given.out / "run")
        size = file.stat().st_size / 2**20
        rate, cpu = num_rows / done.seconds, 1e6 * done.cpu_seconds / num_rows
        shown = f"{num_rows:>11,} {size:>7,.0f} {done.seconds:>9.2f} {rate:>9,.0f} {cpu:>11.0f} {done.peak_mib:>9,.0f}"
        print(shown, flush=True)
        file.unlink()
        good &= done.peak_mib < 2048
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="for the growth")
    parser.add_argument("--peer-rows", type=int, default=50_000, help="for the comparison; 0 leaves it out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skip-trl", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "prepare")
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        name, file, model, *rest = given.peer
        answer = bare_tokenizers(Path(file), Path(model)) if name == "tokenizers" else None
        print(json.dumps(answer or trl(Path(file), Path(model), int(*rest))))
        return 0
    from make_random_model import make

    given.out.mkdir(parents=True, exist_ok=True)
    model = given.out / "random-135m"
    if not (model / "config.json").exists():
        real = ["sft/alpaca_en_demo.json", "sft/glaive_toolcall_en_demo.json", "dpo/dpo_en_demo.json"]
        make([given.data / name for name in (*real, "gsm8k/train.jsonl")], "135m", model)
    good = compare(given, model) if given.peer_rows else True
    good &= scale(given, model) if given.rows else True
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
