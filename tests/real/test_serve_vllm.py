"""vLLM itself: the suite of the embedded server over it, an adapter on top by the real commands, nothing left behind.

Runs where vLLM and a CUDA device are, or with `TUNESMITH_VLLM_PYTHON` naming the Python of an environment that has vLLM
(its CPU build will do).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import openai
import pytest
import torch
from safetensors.torch import save_file

from tests.commands import environment
from tests.contract.test_serve_embedded import (  # noqa: F401 - fixtures and tests, collected here over vLLM
    MAX_MODEL_LEN,
    client,
    reference,
    test_a_stream_ends_with_done_and_without_usage_unless_asked,
    test_a_stream_says_what_the_whole_says,
    test_completions_stream,
    test_completions_take_texts_and_ids_and_echo_with_logprobs,
    test_logprobs_of_a_chat,
    test_seeds_repeat_and_choices_differ,
    test_sixteen_at_once_answer_as_transformers_would,
    test_stop_strings_end_an_answer_before_them,
    test_the_client_raises_its_own_errors,
    test_tools_are_shown_to_the_model_and_left_out_when_not_wanted,
    test_usage_in_every_chunk_when_asked,
)
from tests.contract.test_serve_processes import is_alive, is_free, port_of, wait_until
from tests.fakes.tiny_checkpoint import make_checkpoint
from tunesmith.hardware import probe
from tunesmith.recipe.dump import dump_yaml
from tunesmith.serve.engine import ServedModel
from tunesmith.serve.process import ServerProcess
from tunesmith.serve.stage import serving

PYTHON = os.environ.get("TUNESMITH_VLLM_PYTHON")
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None and (find_spec("vllm") is None or probe().device != "cuda"),
        reason="needs vLLM and a CUDA device, or TUNESMITH_VLLM_PYTHON",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _without_a_gpu() -> None:
    if PYTHON is not None and probe().device != "cuda":
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM's kernels know some head sizes only.
    return make_checkpoint(tmp_path_factory.mktemp("vllm") / "tiny", head_dim=32)


@pytest.fixture(scope="module")
def adapter(checkpoint: Path) -> Path:
    """An adapter that changes every answer."""
    path = checkpoint.parent / "adapter"
    path.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(3):
        for name, size in (("q_proj", 128), ("v_proj", 64)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, 48, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(size, 4, generator=generator)
    save_file(tensors, str(path / "adapter_model.safetensors"))
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[ServerProcess]:
    model = ServedModel(
        checkpoint, "tiny", dtype="float32", max_model_len=MAX_MODEL_LEN, gpu_memory_utilization=0.3, vllm_python=PYTHON
    )
    with serving(model, engine="vllm", log=checkpoint.parent / "log", timeout_seconds=600) as running:
        yield running
    assert wait_until(lambda: is_free(port_of(running.url)) and not is_alive(running.pid))


@pytest.fixture(scope="module")
def run(checkpoint: Path, adapter: Path) -> Path:
    """A run that begins with the adapter, merges it, and is served unmerged."""
    place = checkpoint.parent
    serve = {"engine": "vllm", "unmerged_adapter": True, "max_model_len": MAX_MODEL_LEN}
    document = {
        "name": "brought",
        "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
        "tuned": str(adapter),
        "output_dir": str(place / "outputs"),
        "serve": serve | ({"vllm_python": PYTHON} if PYTHON else {}),
    }
    (place / "recipe.yaml").write_text(dump_yaml(document))
    command = [sys.executable, "-m", "tunesmith", "run", str(place / "recipe.yaml"), "--json"]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["run"])


def test_a_run_serves_its_adapter_unmerged_and_answers_as_the_merged_model(run: Path) -> None:
    command = [sys.executable, "-m", "tunesmith", "serve", str(run), "--port", "0"]
    serving_it = subprocess.Popen(
        command, cwd=run, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert serving_it.stdout is not None and serving_it.stderr is not None
    try:
        line = serving_it.stdout.readline()
        assert line.startswith("brought-tuned is served at http://127.0.0.1:"), serving_it.stderr.read()
        url = line.split(" at ")[1].split()[0]
        names = [card["id"] for card in httpx.get(f"{url}/models").json()["data"]]
        assert sorted(names) == ["brought-tuned", "brought-tuned-without-adapter"]
        unmerged, plain = (asked(url, name) for name in sorted(names))
    finally:
        serving_it.send_signal(signal.SIGINT)
        assert serving_it.wait(timeout=60) == 0
    assert is_free(int(url.split(":")[2].split("/")[0]))
    merged = ServedModel(run / "merge/model", "merged", dtype="float32", max_model_len=MAX_MODEL_LEN)
    with serving(merged, engine="embedded", log=run / "log-merged", timeout_seconds=120) as running:
        expected = asked(f"{running.url}/v1", "merged")
    assert unmerged == pytest.approx(expected, abs=2e-3)
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 0.1, "the adapter does something"


def asked(url: str, model: str) -> list[float]:
    """Return the logarithms of the probabilities that a served model gives the letters of a text."""
    text = "Hello there, what would you like to know about the weather in Köln?"
    with openai.OpenAI(base_url=url, api_key="none") as asking:
        made = asking.completions.create(model=model, prompt=text, max_tokens=1, temperature=0, echo=True, logprobs=1)
    assert made.choices[0].logprobs is not None and made.choices[0].logprobs.token_logprobs is not None
    first, *found, _answer = made.choices[0].logprobs.token_logprobs
    assert first is None and len(found) == len(text.encode()) - 1
    return [float(value) for value in found]
