"""Loading what the server answers with: the model, its tokenizer, its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError, ServeError
from tunesmith.serve.embedded import attention
from tunesmith.serve.embedded.batch import Limits
from tunesmith.serve.embedded.packed import pack
from tunesmith.serve.embedded.slots import Slots, Step
from tunesmith.tokens.chat import encode_prompt
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_NUM_PROBE_TOKENS = 24
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded."""

    dtype: str = "auto"  # auto = the checkpoint's own
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

    @cached_property
    def pieces(self) -> list[str]:
        """The text that each id adds behind other text; special tokens add none, a part of a letter adds U+FFFD."""
        before = self.tokenizer.encode("a")
        length = len(self.decode_all(before))
        special = set(self.tokenizer.special_texts.values())
        return ["" if i in special else self.decode_all([*before, i])[length:] for i in range(self.tokenizer.id_limit)]

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
        _check_layers(config, path)
        model = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=config,
            dtype=_DTYPES.get(options.dtype, "auto"),
            trust_remote_code=options.trust_remote_code,
        )
    except ServeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever transformers meets is about this directory
        raise ModelError(f"the model cannot be loaded: {error}", where=str(path)) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    use_slots(model, path)
    limits, max_model_len = _bounds(config.get_text_config(), model, options)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        template=template,
        eos_ids=frozenset(tokenizer.eos_ids) | _turn_end(tokenizer, template),
        prefix_ids=_prefix_ids(path),
        max_model_len=max_model_len,
        limits=limits,
    )


def use_slots(model: Any, path: Path) -> None:
    """Give a model the attention over slots and packed weights; compare its logits with those that it had before.

    Raises:
        ServeError: its attention cannot be replaced, or is another one than ours.
    """
    ids = torch.arange(1, 1 + _NUM_PROBE_TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    do = "set serve.engine to vllm on a machine with a CUDA device"
    attention.register()
    try:
        with torch.inference_mode():
            expected_TV = model(input_ids=ids, use_cache=False).logits[0].float()
            model.set_attn_implementation(attention.NAME)
            pack(model)
            found_TV = _probe(model, ids).float()
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        what = f"the attention of a {model.config.model_type!r} model cannot be batched by the embedded server: {error}"
        raise ServeError(what, where=str(path), do=do) from None
    difference, scale = float((found_TV - expected_TV).abs().max()), float(expected_TV.abs().max())
    if not difference <= tolerance * max(1.0, scale):
        what = f"the embedded server computes other logits for a {model.config.model_type!r} model than transformers"
        raise ServeError(f"{what} (by {difference:.3g})", where=str(path), do=do)


def _probe(model: Any, ids_1T: torch.Tensor) -> torch.Tensor:
    """Return the logits (T, V) of a prompt read in two stretches and a single token, as a batch would."""
    slots, parts, begin = Slots(1, ids_1T.shape[1]), [], 0
    slots.make_room(1, ids_1T.shape[1])
    for count in (_NUM_PROBE_TOKENS // 2, _NUM_PROBE_TOKENS - _NUM_PROBE_TOKENS // 2 - 1, 1):
        end = begin + count
        chunks, lengths = ([(0, begin, count)], []) if count > 1 else ([], [end])
        step = Step(slots, lengths, chunks, model.device)
        positions = torch.arange(begin, end, device=model.device)[None]
        parts.append(
            model(input_ids=ids_1T[:, begin:end], position_ids=positions, use_cache=False, step=step).logits[0]
        )
        begin = end
    return torch.cat(parts)


def _check_layers(config: Any, path: Path) -> None:
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    recurrent = any(hasattr(text_config, name) for name in ("ssm_state_size", "mamba_d_state", "num_kv_shared_layers"))
    if config.is_encoder_decoder or not kinds <= _ATTENTION_LAYERS or recurrent:
        do = "set serve.engine to vllm on a machine with a CUDA device"
        what = f"the embedded server batches attention layers only, and a {config.model_type!r} model has others"
        raise ServeError(what, where=str(path), do=do)


def _bounds(text_config: Any, model: Any, options: LoadOptions) -> tuple[Limits, int]:
    """Return the bounds of the batch, and the longest prompt plus answer.

    Keys and values may take a quarter of the memory that is free now. A length that nobody asked for is cut to what
    they hold; one that was asked for must fit.
    """
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    cell_bytes = 2 * text_config.num_hidden_layers * heads * head_size * model.dtype.itemsize
    budget = options.kv_cache_gib * 2**30 if options.kv_cache_gib else _free_memory_bytes(model.device) / 4
    max_cells = max(1, int(budget / cell_bytes))
    own, asked = getattr(text_config, "max_position_embeddings", None), options.max_model_len
    if asked is not None and own is not None and asked > own:
        do = f"set serve.max_model_len to {own} or less"
        raise ServeError(f"max_model_len {asked} is above the model's own limit of {own} tokens", do=do)
    if asked is not None and asked > max_cells:
        what = f"max_model_len {asked} needs {asked * cell_bytes / 2**30:.2f} GiB for keys and values"
        do = f"set serve.max_model_len to {max_cells} or less, or free memory"
        raise ServeError(f"{what}, and {budget / 2**30:.2f} GiB are set aside for them", do=do)
    limits = Limits(max_rows=options.max_rows, max_cells=max_cells, cell_bytes=cell_bytes)
    if model.device.type != "cpu":
        limits = replace(limits, step_tokens=2048, idle_step_tokens=4096)
    return limits, asked or min(int(own or 2048), max_cells)


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
