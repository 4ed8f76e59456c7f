"""What a server program is to us: a command line that listens on a port, and nothing imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunesmith.errors import ServeError


@dataclass(frozen=True)
class ServedModel:
    """A model directory and how it is served.

    Attributes:
        path: directory in Hugging Face's layout.
        name: what requests call it.
        dtype: bfloat16, float16, float32, or auto for the checkpoint's own.
        max_model_len: longest prompt plus answer in tokens; None is the model's own limit.
        chat_template: `model`, a named template, or a Jinja file.
        gpu_memory_utilization: share of GPU memory that vLLM may take.
        adapter: a LoRA adapter, in PEFT's format, that vLLM puts on top; `name` is then what it is called.
        vllm_python: Python of the environment that has vLLM; None is this one.
    """

    path: Path
    name: str
    dtype: str = "auto"
    max_model_len: int | None = None
    chat_template: str = "model"
    trust_remote_code: bool = False
    gpu_memory_utilization: float = 0.9
    adapter: Path | None = None
    vllm_python: str | None = None


class Engine(Protocol):
    """A server program."""

    name: str

    def command(self, model: ServedModel, host: str, port: int) -> list[str]:
        """Return the command line that serves a model on a port.

        Raises:
            TunesmithError: the model cannot be served by this engine.
        """
        ...

    def environment(self) -> dict[str, str]:
        """Return variables for the process; what the user has set wins over them."""
        ...


def engine_named(name: str) -> Engine:
    """Return the engine of a resolved recipe's `serve.engine`."""
    if name == "vllm":
        from tunesmith.serve.vllm import Vllm

        return Vllm()
    assert name == "embedded", name
    return Embedded()


class Embedded:
    """Our own server (`tunesmith.serve.embedded`)."""

    name = "embedded"

    def command(self, model: ServedModel, host: str, port: int) -> list[str]:
        import sys

        if model.adapter is not None:
            what = "the embedded server serves merged models only"
            raise ServeError(
                what, where=str(model.adapter), do="set serve.engine to vllm, or unmerged_adapter to false"
            )
        command = [sys.executable, "-m", "tunesmith.serve.embedded", "--model", str(model.path)]
        command += ["--served-model-name", model.name, "--host", host, "--port", str(port), "--dtype", model.dtype]
        if model.max_model_len is not None:
            command += ["--max-model-len", str(model.max_model_len)]
        if model.chat_template != "model":
            command += ["--chat-template", model.chat_template]
        return command + (["--trust-remote-code"] if model.trust_remote_code else [])

    def environment(self) -> dict[str, str]:
        # A step is hundreds of small products: threads that sleep after each of them cost a third of the time, threads
        # that spin for long take the cores that the event loop needs.
        spinning = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
        return spinning | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
