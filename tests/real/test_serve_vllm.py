"""vLLM itself: the suite of the embedded server over it, an adapter on top, nothing left behind.

Runs where vLLM and a CUDA device are, or with `TUNESMITH_VLLM_PYTHON` naming the Python of an environment that has vLLM
(its CPU build will do).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import save_file

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
def server(checkpoint: Path, adapter: Path) -> Iterator[ServerProcess]:
    if PYTHON is not None and probe().device != "cuda":
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    model = ServedModel(
        checkpoint, "tiny", dtype="float32", max_model_len=MAX_MODEL_LEN, gpu_memory_utilization=0.3, vllm_python=PYTHON
    )
    with serving(model, engine="vllm", log=checkpoint.parent / "log", timeout_seconds=600) as running:
        yield running
    assert wait_until(lambda: is_free(port_of(running.url)) and not is_alive(running.pid))


def test_an_adapter_on_top_answers_under_its_name(checkpoint: Path, adapter: Path) -> None:
    model = ServedModel(
        checkpoint, "run-tuned", dtype="float32", max_model_len=MAX_MODEL_LEN, adapter=adapter, vllm_python=PYTHON
    )
    with serving(model, engine="vllm", log=checkpoint.parent / "log-adapter", timeout_seconds=600) as running:
        names = [card["id"] for card in httpx.get(f"{running.url}/v1/models").json()["data"]]
        assert "run-tuned" in names and len(names) == 2
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as asking:
            made: list[Any] = [
                asking.completions.create(model=name, prompt="hello", max_tokens=8, temperature=0) for name in names
            ]
    assert made[0].choices[0].text != made[1].choices[0].text
