"""A checkpoint directory becomes a model in memory, ready to train. Prints nothing."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import EnvironmentProblem, ModelError, missing_extra
from tunesmith.model.headers import read_config, read_headers
from tunesmith.model.stored import keep_stored
from tunesmith.model.straight import read_straight
from tunesmith.recipe.schema import Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(number: int = 0) -> torch.device:
    """Return where this process computes: the CUDA device of its number when PyTorch sees any, the CPU otherwise."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", number % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load_model(
    path: Path,
    settings: Model,
    *,
    four_bit: bool,
    device: torch.device,
    keeps_stored: bool = False,
    whole: tuple[str, ...] = (),
) -> Any:
    """Load a causal language model with frozen weights, in training mode.

    Args:
        four_bit: keep linear layers but the output head in NF4. They are quantised one by one on the device: it never
            holds the whole model in 16 bits, the host's memory does for a moment.
        device: where the weights go.
        keeps_stored: let linear layers but the output head keep the 16 bits they are stored in (`model.stored`).
        whole: endings of the names of modules that neither is done to, since they are to be trained whole.

    Raises:
        ModelError: the checkpoint is missing, damaged, of an unknown architecture, or quantised already.
        EnvironmentProblem: transformers, or the attention kernel, is not installed.
    """
    _refuse_quantised(read_config(path), path)
    tensors = read_headers(path)  # says which file is broken before a library says that something is
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise missing_extra("transformers", "train", needed_for="training") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    keeps_stored = keeps_stored and any(info.dtype in ("BF16", "F16") for info in tensors.values())

    def read(attention: str) -> Any:
        straight = read_straight(path, tensors, settings, attention, whole=whole) if keeps_stored else None
        return straight or _read(AutoModelForCausalLM, path, settings, attention)

    try:
        # `varlen` is switched on later, where it is shown to give the numbers of the model's own attention.
        wanted = "sdpa" if settings.attn_implementation == "varlen" else settings.attn_implementation
        model = read(wanted)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if wanted != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise _load_error(error, path, settings) from None
        # Architectures that change the attention scores (Gemma 2 caps them) have no fused kernel: same numbers, slower.
        model = read("eager")
    except ImportError as error:
        do = "set model.attn_implementation: sdpa, or install what is missing"
        raise EnvironmentProblem(_first_line(error), where=str(path), do=do) from None
    model.requires_grad_(False)
    if four_bit:
        from tunesmith.model.nf4 import quantise_linears

        quantise_linears(model, device, whole=whole)
        _give_back_freed_memory()
    elif keeps_stored and keep_stored(model, whole=whole):  # of a model that could not be read straight
        _give_back_freed_memory()
    return model.to(device).train()


def _refuse_quantised(config: dict[str, Any], path: Path) -> None:
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        do = "give the checkpoint it was made from; `train.method: qlora` quantises by itself"
        raise ModelError(f"the checkpoint is quantised already ({method})", where=str(path), do=do)


def _give_back_freed_memory() -> None:
    """Hand back what the wide weights took; glibc would keep it. Other C libraries have no such call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _read(auto: Any, path: Path, settings: Model, attention: str) -> Any:
    return auto.from_pretrained(
        str(path),
        dtype=DTYPES[settings.dtype],
        attn_implementation=attention,
        trust_remote_code=settings.trust_remote_code,
        local_files_only=True,
    )


def _load_error(error: Exception, path: Path, settings: Model) -> ModelError:
    text = str(error)
    if "trust_remote_code" in text:
        do = "read the code in the checkpoint, then set model.trust_remote_code: true"
        return ModelError("the checkpoint brings its own Python code", where=str(path), do=do)
    if "Flash Attention" in text or "flash_attention" in text:
        what = f"the model has no {settings.attn_implementation} attention"
        return ModelError(what, where=str(path), do="set model.attn_implementation: sdpa")
    what = f"the model cannot be loaded: {_first_line(error)}"
    return ModelError(what, where=str(path), do="check that config.json and the weights belong together")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_vocabulary(model: Any, num_ids: int, path: Path) -> None:
    """Raise unless the embedding has a row for every id of the tokenizer.

    More rows than ids are usual: makers round them up.

    Raises:
        ModelError: the tokenizer makes ids that the model does not know.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if num_ids > rows:
        what = f"the tokenizer has {num_ids:,} ids, and the model's embedding {rows:,} rows"
        do = "use the tokenizer that belongs to the model, or resize the embedding: model.resize_token_embeddings(n)"
        raise ModelError(what, where=str(path), do=do)
