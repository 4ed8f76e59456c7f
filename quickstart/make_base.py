"""Make the quickstart's base model: a small Llama that chats, reads tool declarations, and has never seen a tool call.

    python quickstart/make_base.py --out DIR [--steps N]

It trains a byte-level tokenizer and then pre-trains the model on the endless conversations of `pretraining_text.py`:
24.9 M tokens, 75 to 90 minutes on two CPU cores. A conversation that holds a value of the data files, the name of a
tool kept for held-out rows, or the word `tool_call`, is left out.
Deterministic for one machine and thread count; other machines may round differently.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from catalog import names_kept_for_held_out
from make_data import make_rows, values_of, words_of
from pretraining_text import (
    FIRST_LESSON,
    LAST_LESSON,
    SECOND_LESSON,
    THIRD_LESSON,
    Conversation,
    Lesson,
    plain_conversation,
    tool_conversation,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
VOCABULARY_SIZE = 1536
CONTEXT_TOKENS = 1024
SAVE_EVERY = 250
WARMUP_STEPS = 100
BATCH_TOKENS = 2560
CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
IGNORED = -100

# Letters, single digits, runs of punctuation with the spaces in and behind them, and white space are separate: a word
# has the same tokens in a sentence, in a tool declaration and in JSON, so that copying one is copying its tokens.
_PIECES = r"\p{L}+|\d|[^\p{L}\d\s]+(?: [^\p{L}\d\s]+)* ?|\s"


@dataclass(frozen=True)
class Course:
    """One part of the pre-training: the first `num_steps` of a learning-rate schedule made for `schedule_steps`."""

    lesson: Lesson
    seed: int
    num_steps: int
    schedule_steps: int
    peak_learning_rate: float
    num_plain_steps: int


COURSES = (
    Course(FIRST_LESSON, seed=8, num_steps=3500, schedule_steps=4000, peak_learning_rate=2e-3, num_plain_steps=400),
    Course(SECOND_LESSON, seed=9, num_steps=1250, schedule_steps=2400, peak_learning_rate=1.2e-3, num_plain_steps=0),
    Course(THIRD_LESSON, seed=10, num_steps=650, schedule_steps=650, peak_learning_rate=1e-3, num_plain_steps=0),
    Course(LAST_LESSON, seed=11, num_steps=1600, schedule_steps=1600, peak_learning_rate=1.2e-3, num_plain_steps=0),
    Course(LAST_LESSON, seed=12, num_steps=1000, schedule_steps=1000, peak_learning_rate=1e-3, num_plain_steps=0),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on generated conversations (a few seconds)."""
    random = Random(SEED)
    makers = [plain_conversation, tool_conversation] * 2000
    texts = ["".join(text for text, _ in make(random, FIRST_LESSON).segments()) for make in makers]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the model with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def reserved_words() -> set[str]:
    """Return what no pre-training text may hold: every argument value of the data files, the unseen tools' names."""
    training, held_out = make_rows()
    return values_of(training) | values_of(held_out) | names_kept_for_held_out() | {"tool_call"}


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Return the conversation's token ids and its labels: only what the assistant says is learnt."""
    ids: list[int] = []
    labels: list[int] = []
    for text, is_answer in conversation.segments():
        piece = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        labels += piece if is_answer else [IGNORED] * len(piece)
    return ids, labels


def batches(tokenizer: PreTrainedTokenizerFast, course: Course) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of about `BATCH_TOKENS` tokens (ids and labels, right-padded), each of one kind of conversation.

    The first `num_plain_steps` are conversations without tools only, since copying must come first.
    """
    random, reserved = Random(course.seed), reserved_words()
    for step in range(course.num_steps):
        with_tools = step > course.num_plain_steps and random.random() < course.lesson.tool_conversation_fraction
        make = tool_conversation if with_tools else plain_conversation
        rows: list[tuple[list[int], list[int]]] = []
        while sum(len(ids) for ids, _ in rows) < BATCH_TOKENS * 2:
            conversation = make(random, course.lesson)
            text = "".join(text for text, _ in conversation.segments())
            if not reserved & words_of(text):
                rows.append(encode(tokenizer, conversation))
        rows.sort(key=lambda row: len(row[0]))
        start = random.randrange(max(1, len(rows) // 2))
        chosen, num_tokens = [], 0
        for row in rows[start:]:
            chosen.append(row)
            num_tokens += len(row[0])
            if num_tokens >= BATCH_TOKENS:
                break
        width = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in chosen])
        yield ids, torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in chosen])


def learning_rate(step: int, course: Course) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to a twentieth of the peak."""
    if step < WARMUP_STEPS:
        return course.peak_learning_rate * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (course.schedule_steps - WARMUP_STEPS)
    return course.peak_learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens; logits are computed for these only."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[learnt]), targets[learnt])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bfloat16 and the tokenizer with its chat template."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    config = LlamaConfig.from_dict(model.config.to_dict())
    copy = LlamaForCausalLM(config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, course: Course, out: Path) -> None:
    """Train the model in place through one course; print the loss; save it every `SAVE_EVERY` steps and at the end."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    started, mean_loss, num_tokens = time.monotonic(), 8.0, 0
    for step, (ids, labels) in enumerate(batches(tokenizer, course)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, course)
        loss = answer_loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean_loss += 0.05 * (loss.item() - mean_loss)
        num_tokens += ids.numel()
        if step % 50 == 49:
            print(
                f"step {step + 1}  loss {mean_loss:.3f}  tokens {num_tokens}  seconds {time.monotonic() - started:.0f}",
                flush=True,
            )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == course.num_steps:
            save(model, tokenizer, out)


def main() -> None:
    """Make the base model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument(
        "--steps", type=int, help="stop every course after this many optimizer steps (default: the whole course)"
    )
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens in the vocabulary")
    for course in COURSES:
        num_steps = min(arguments.steps or course.num_steps, course.num_steps)
        pretrain(model, tokenizer, replace(course, num_steps=num_steps), arguments.out)
        model = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).train()


if __name__ == "__main__":
    main()
