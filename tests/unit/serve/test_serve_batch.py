"""Continuous batching gives each answer what it would have got alone."""

from __future__ import annotations

import dataclasses
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.fakes.tiny_checkpoint import FAMILIES, make_checkpoint
from tunesmith.serve.embedded.batch import Batch, Delivery, Limits
from tunesmith.serve.embedded.checkpoint import Checkpoint, LoadOptions, load
from tunesmith.serve.embedded.sequence import Answer, Output, Sampling


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: load(make_checkpoint(root / family, family), LoadOptions(dtype="float32")) for family in FAMILIES}


class Run:
    """A batch, and what came out of it."""

    def __init__(self, checkpoint: Checkpoint, limits: Limits | None = None) -> None:
        self.checkpoint = checkpoint
        self.outputs: dict[Answer, list[Output]] = {}
        self.most_rows = 0
        self._changed = threading.Condition()
        self.batch = Batch(checkpoint.model, limits or Limits())
        self.batch.deliver = self._deliver
        threading.Thread(target=self.batch.run, daemon=True).start()

    def answer(self, prompt: list[int], **sampling: object) -> Answer:
        answer = Answer(prompt, Sampling(**sampling), self.checkpoint.eos_ids, self.checkpoint.decode_visible)  # type: ignore[arg-type]
        self.outputs[answer] = []
        return answer

    def _deliver(self, delivery: Delivery) -> None:
        with self._changed:
            self.most_rows = max(self.most_rows, self.batch.load[0] + sum(bool(o.finish_reason) for _, o in delivery))
            for answer, output in delivery:
                self.outputs[answer].append(output)
            self._changed.notify_all()

    def wait_for(self, answers: list[Answer]) -> None:
        def is_done(answer: Answer) -> bool:
            return any(output.finish_reason or output.error for output in self.outputs[answer])

        with self._changed:
            assert self._changed.wait_for(lambda: all(is_done(answer) for answer in answers), timeout=60)

    def text(self, answer: Answer) -> str:
        return "".join(output.text for output in self.outputs[answer])


def prompts_of(count: int, seed: int = 1) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(256) for _ in range(generator.randint(1, 60))] for _ in range(count)]


def own_model(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint as transformers runs it."""
    path = checkpoint.model.config.name_or_path
    if path not in _MODELS:
        _MODELS[path] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return _MODELS[path]


_MODELS: dict[str, Any] = {}


def reference(checkpoint: Checkpoint, prompt: list[int], num_tokens: int) -> list[int]:
    """Return transformers' own greedy answer."""
    ids = torch.tensor([prompt])
    made = own_model(checkpoint).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=sorted(checkpoint.eos_ids),
        pad_token_id=0,
    )
    return list(made[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_equals_generate_for_sixteen_at_once(checkpoints: dict[str, Checkpoint], family: str) -> None:
    checkpoint = checkpoints[family]
    run = Run(checkpoint)
    lengths = [3 + 5 * (i % 7) for i in range(16)]
    answers = [run.answer(p, max_tokens=n, temperature=0.0) for p, n in zip(prompts_of(16), lengths, strict=True)]
    run.batch.submit(answers[:5])
    run.wait_for(answers[:1])  # the others join a batch that is under way
    run.batch.submit(answers[5:])
    run.wait_for(answers)
    run.batch.close()
    assert run.most_rows > 5
    for answer, length in zip(answers, lengths, strict=True):
        assert answer.generated == reference(checkpoint, answer.prompt, length)
    assert len({tuple(answer.generated) for answer in answers}) > 10, "the model says the same whatever it is asked"


def test_a_small_cache_makes_answers_wait_and_changes_nothing(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["llama"]
    run = Run(checkpoint, Limits(max_rows=4, max_cells=300, step_tokens=20, idle_step_tokens=70))
    answers = [run.answer(p, max_tokens=20, temperature=0.0) for p in prompts_of(9)]
    run.batch.submit(answers)
    run.wait_for(answers)
    run.batch.close()
    assert 1 < run.most_rows <= 4
    assert [a.generated for a in answers] == [reference(checkpoint, a.prompt, 20) for a in answers]


def test_a_seed_repeats_whatever_the_neighbours(checkpoints: dict[str, Checkpoint]) -> None:
    run = Run(checkpoints["llama"])
    prompt = prompts_of(1)[0]

    def one() -> Answer:
        return run.answer(prompt, max_tokens=24, temperature=0.9, top_p=0.9, seed=11)

    alone = one()
    run.batch.submit([alone])
    run.wait_for([alone])
    crowd = [run.answer(p, max_tokens=30, temperature=1.0) for p in prompts_of(6, seed=3)]
    among = one()
    run.batch.submit([*crowd[:3], among, *crowd[3:]])
    run.wait_for([among, *crowd])
    other = run.answer(prompt, max_tokens=24, temperature=0.9, top_p=0.9, seed=12)
    run.batch.submit([other])
    run.wait_for([other])
    run.batch.close()
    assert alone.generated == among.generated != other.generated


def test_a_cancelled_answer_frees_its_row(checkpoints: dict[str, Checkpoint]) -> None:
    run = Run(checkpoints["llama"], Limits(max_rows=1))
    endless = run.answer([65, 66], max_tokens=100_000, temperature=0.0, ignore_eos=True)
    short = run.answer([67, 68], max_tokens=3, temperature=0.0)
    run.batch.submit([endless, short])
    run.batch.cancel(endless)
    run.wait_for([short])
    run.batch.close()
    assert short.generated == reference(run.checkpoint, [67, 68], 3)
    assert not endless.finish_reason


def test_logprobs_are_those_of_the_model(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["llama"]
    run = Run(checkpoint)
    others = [run.answer(p, max_tokens=9, temperature=0.0) for p in prompts_of(4)]
    wanted = run.answer(
        prompts_of(1, seed=8)[0], max_tokens=6, temperature=0.0, num_logprobs=3, prompt_logprobs=True, ignore_eos=True
    )
    run.batch.submit([*others, wanted])
    run.wait_for([wanted, *others])
    run.batch.close()
    found = [token for output in run.outputs[wanted] for token in output.logprobs]
    ids = wanted.prompt + wanted.generated
    with torch.inference_mode():
        expected = own_model(checkpoint)(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert [token.token_id for token in found] == ids
    assert found[0].logprob is None
    for t, token in enumerate(found[1:]):
        assert token.logprob == pytest.approx(float(expected[t, ids[t + 1]]), abs=1e-4)
        assert [i for i, _ in token.top] == expected[t].topk(3).indices.tolist()


def test_a_failing_model_fails_its_answers_and_the_thread_lives(
    tmp_path: Path, checkpoints: dict[str, Checkpoint]
) -> None:
    run = Run(checkpoints["llama"])
    broken = run.answer([10_000], max_tokens=4)  # an id outside the vocabulary
    run.batch.submit([broken])
    run.wait_for([broken])
    assert "IndexError" in run.outputs[broken][0].error
    fine = run.answer([65], max_tokens=4, temperature=0.0)
    run.batch.submit([fine])
    run.wait_for([fine])
    run.batch.close()
    assert fine.generated == reference(run.checkpoint, [65], 4)


class Counted:
    """A model that notes what it reads."""

    def __init__(self, model: Any) -> None:
        self._model, self.device, self.steps = model, model.device, list[int]()

    def __call__(self, **arguments: Any) -> Any:
        self.steps.append(int(arguments["input_ids"].shape[1]))
        return self._model(**arguments)


def counted_run(checkpoint: Checkpoint, limits: Limits) -> tuple[Run, Counted]:
    counted = Counted(checkpoint.model)
    return Run(dataclasses.replace(checkpoint, model=counted), limits), counted


def test_a_long_prompt_is_read_between_the_tokens_of_others(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["llama"]
    run, counted = counted_run(checkpoint, Limits(step_tokens=16, idle_step_tokens=64))
    first = run.answer([70] * 10, max_tokens=40, temperature=0.0, ignore_eos=True)
    run.batch.submit([first])
    with run._changed:
        run._changed.wait_for(lambda: bool(run.outputs[first]), timeout=60)
    long = run.answer(list(range(150)), max_tokens=3, temperature=0.0)
    run.batch.submit([long])
    run.wait_for([first, long])
    run.batch.close()
    assert max(counted.steps) <= 16 and counted.steps.count(16) >= 8
    assert long.generated == reference(checkpoint, long.prompt, 3)


def test_outgrown_slots_are_given_up_and_the_answer_goes_on(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["llama"]
    # Three rows of 30 tokens fit, three of 70 do not.
    run, counted = counted_run(checkpoint, Limits(max_rows=3, max_cells=150))
    prompts = [[65 + i] * 20 for i in range(3)]
    answers = [run.answer(p, max_tokens=50, temperature=0.7, seed=i, ignore_eos=True) for i, p in enumerate(prompts)]
    run.batch.submit(answers)
    run.wait_for(answers)
    run.batch.close()
    assert run.most_rows == 3
    assert sum(counted.steps) > 3 * 69, "what was given up is read again"
    roomy = Run(checkpoint)
    same = [roomy.answer(p, max_tokens=50, temperature=0.7, seed=i, ignore_eos=True) for i, p in enumerate(prompts)]
    roomy.batch.submit(same)
    roomy.wait_for(same)
    roomy.batch.close()
    assert [answer.generated for answer in answers] == [answer.generated for answer in same]


def test_a_beginning_that_a_slot_holds_is_not_read_again(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["gemma3_text"]
    run, counted = counted_run(checkpoint, Limits())
    system = [random.Random(5).randrange(256) for _ in range(50)]
    prompts = [system + [i] * (3 + i) for i in range(4)]
    for prompt in (*prompts, prompts[0]):  # the last one is known whole
        answer = run.answer(prompt, max_tokens=8, temperature=0.0)
        run.batch.submit([answer])
        run.wait_for([answer])
        assert answer.generated == reference(checkpoint, prompt, 8)
    run.batch.close()
    assert [size for size in counted.steps if size > 1] == [53, 4, 5, 6, 3]


def test_requests_take_turns(checkpoints: dict[str, Checkpoint]) -> None:
    run = Run(checkpoints["llama"], Limits(max_rows=1))
    many = [run.answer([65, i], max_tokens=2, temperature=0.0, ignore_eos=True) for i in range(10)]
    one = run.answer([66], max_tokens=2, temperature=0.0, ignore_eos=True)
    ended: list[Answer] = []
    deliver = run.batch.deliver

    def note(delivery: Delivery) -> None:
        ended.extend(answer for answer, output in delivery if output.finish_reason)
        deliver(delivery)

    run.batch.deliver = note
    with run.batch._wake:  # both are there before the first one is taken
        run.batch.submit(many)
        run.batch.submit([one])
    run.wait_for([*many, one])
    run.batch.close()
    assert ended.index(one) <= 1
