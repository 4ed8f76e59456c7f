"""Loading what the server answers with: the model, its tokenizer, its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError, ServeError
from tunesmith.serve.embedded.batch import Limits
from tunesmith.tokens.chat import encode_prompt
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded."""

    dtype: str = "auto"  # auto = the checkpoint's own
    attn_implementation: str = "sdpa"
    trust_remote_code: bool = False
    chat_template: str = "model"
    max_model_len: int | None = None  # None = the model's own limit
    max_rows: int = 32
    kv_cache_gib: float | None = None  # None = a quarter of the free memory


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to generate, and everything between text and its ids."""

    model: Any
    tokenizer: ChatTokenizer
    template: ChatTemplate | None  # None: the model cannot chat, only complete
    eos_ids: frozenset[int]
    prefix_ids: tuple[int, ...]  # what the tokenizer puts before a plain text
    max_model_len: int
    num_layers: int
    limits: Limits

    def encode_chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation with the generation prompt.

        Raises:
            DataError: the template refuses the conversation.
        """
        assert self.template is not None
        return encode_prompt(self.tokenizer, self.template, tuple(messages), tuple(tools))

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a plain text, begun as the tokenizer begins texts."""
        return [*self.prefix_ids, *self.tokenizer.encode(text)]

    def decode_visible(self, ids: Sequence[int]) -> str:
        """Return text without special tokens."""
        return self.tokenizer.decode(ids, skip_special=True)

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return text with special tokens: some families open their calls with one."""
        return self.tokenizer.decode(ids, skip_special=False)


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a checkpoint directory onto the GPU when there is one, else into main memory.

    Raises:
        ModelError: it cannot be loaded, or its architecture keeps a state that this server cannot batch.
        DataError: tokenizer or template cannot be used.
    """
    tokenizer = load_tokenizer(path)
    wants_template = options.chat_template != "model" or tokenizer.model_template is not None
    template = template_for(tokenizer, options.chat_template) if wants_template else None
    transformers_logging.disable_progress_bar()  # the log is for requests
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=options.trust_remote_code)
        num_layers = _num_attention_layers(config, path)
        model = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=config,
            dtype=_DTYPES.get(options.dtype, "auto"),
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
        )
    except ServeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever transformers meets is about this directory
        raise ModelError(f"the model cannot be loaded: {error}", where=str(path)) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    text_config = config.get_text_config()
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        template=template,
        eos_ids=frozenset(tokenizer.eos_ids) | _turn_end(tokenizer, template),
        prefix_ids=_prefix_ids(path),
        max_model_len=_max_model_len(text_config, options),
        num_layers=num_layers,
        limits=_limits(text_config, model, options),
    )


def _num_attention_layers(config: Any, path: Path) -> int:
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    recurrent = any(hasattr(text_config, name) for name in ("ssm_state_size", "mamba_d_state", "num_kv_shared_layers"))
    if config.is_encoder_decoder or not kinds <= _ATTENTION_LAYERS or recurrent:
        do = "set serve.engine to vllm on a machine with a CUDA device"
        what = f"the embedded server batches attention layers only, and a {config.model_type!r} model has others"
        raise ServeError(what, where=str(path), do=do)
    return int(text_config.num_hidden_layers)


def _max_model_len(text_config: Any, options: LoadOptions) -> int:
    own = getattr(text_config, "max_position_embeddings", None)
    if options.max_model_len is None:
        return int(own or 2048)
    if own is not None and options.max_model_len > own:
        do = f"set serve.max_model_len to {own} or less"
        raise ServeError(f"max_model_len {options.max_model_len} is above the model's own limit of {own} tokens", do=do)
    return options.max_model_len


def _limits(text_config: Any, model: Any, options: LoadOptions) -> Limits:
    """Return the bounds of the batch; its keys and values may take a quarter of the memory that is free now."""
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    cell_bytes = 2 * text_config.num_hidden_layers * heads * head_size * model.dtype.itemsize
    budget = options.kv_cache_gib * 2**30 if options.kv_cache_gib else _free_memory_bytes(model.device) / 4
    return Limits(max_rows=options.max_rows, max_cells=max(1, int(budget / cell_bytes)))


def _free_memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(4 << 30)


def _turn_end(tokenizer: ChatTokenizer, template: ChatTemplate | None) -> frozenset[int]:
    """Return the special token that the template writes after an assistant's words: an answer ends there.

    A base model's own end token may be another one (`<|endoftext|>`, say) than that of the template it is given.
    """
    if template is None:
        return frozenset()
    from tunesmith.tokens.chat import render
    from tunesmith.tokens.jinja import TemplateProblem

    probe = "tunesmith-probe"
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": probe})
    try:
        text = render(template, messages, ())
    except TemplateProblem:
        return frozenset()
    after = tokenizer.encode(text[text.rindex(probe) + len(probe) :]) if probe in text else []
    special = set(tokenizer.special_texts.values())
    return frozenset(after[:1]) & special


def _prefix_ids(path: Path) -> tuple[int, ...]:
    file = path / "tokenizer.json"
    if not file.exists():
        return ()
    from tokenizers import Tokenizer

    return tuple(Tokenizer.from_file(str(file)).encode("", add_special_tokens=True).ids[:1])
