"""Rows encoded in bulk and in worker processes come out as they do one by one; so does a whole data stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.families import write_family
from tunesmith.data import building, stage, workers
from tunesmith.data.seen import DigestSet
from tunesmith.data.tokenising import Encoder, batches
from tunesmith.data.workers import Workers
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data, Model, Recipe, Source, Train
from tunesmith.rows.conversation import Conversation, Preference
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_family(tmp_path_factory.mktemp("model"), "chatml")
    (directory / "config.json").write_text(json.dumps({"vocab_size": load_tokenizer(directory).id_limit}))
    return directory


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_BATCHES_ALONE", 0)


def encoder_of(model: Path, objective: Any = "sft") -> Encoder:
    recipe = Recipe("t", Model(str(model)), Data((Source("x"),)), train=Train(objective=objective))
    tokenizer = load_tokenizer(model)
    return Encoder(tokenizer, template_for(tokenizer, "chatml"), recipe)


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def conversation(n: int) -> Conversation:
    if n % 7 == 3:  # refused: the template does not show the call's name where the assistant speaks
        return Conversation((said("user", "x"), {"role": "nobody", "content": "x"}, said("assistant", "")))
    return Conversation(
        (said("user", f"Weather {n}?\n\n"), said("assistant", f"\n\nSunny, {n * 37} degrees “ok” 你好"))
    )


def preference(n: int) -> Preference:
    prompt = Conversation((said("user", f"Question {n}?"),))
    return Preference(prompt, (said("assistant", f"Good {n}"),), (said("assistant", f"Bad {n}"),))


def listed(encoded: list[Any]) -> list[Any]:
    return [
        row if isinstance(row, str) else [(list(map(int, ids)), list(map(bool, flags))) for ids, flags in row]
        for row in encoded
    ]


@pytest.mark.parametrize(("objective", "make"), [("sft", conversation), ("dpo", preference)])
@pytest.mark.parametrize("num_processes", [1, 3])
def test_batches_come_back_in_order_and_as_the_plain_way_has_them(
    model: Path, no_wait: None, objective: str, make: Any, num_processes: int
) -> None:
    encoder = encoder_of(model, objective)
    given = list(batches(map(make, range(90)), 5))
    with Workers(encoder, num_processes) as pool:
        found = list(pool.encoded(given, lambda batch: batch))
    assert [batch for batch, _ in found] == given
    for batch, encoded in found:
        assert listed(encoded) == listed(encoder.encode(batch))


def test_a_worker_that_dies_leaves_its_batches_to_others(model: Path, no_wait: None) -> None:
    encoder = encoder_of(model)
    given = list(batches(map(conversation, range(60)), 5))
    with Workers(encoder, 2) as pool:
        found = []
        for number, (_, encoded) in enumerate(pool.encoded(given, lambda batch: batch)):
            found += encoded
            if number == 1:
                worker = pool._idle.get(timeout=60)
                worker._process.kill()
                pool._idle.put(worker)
    assert listed(found) == listed(encoder.encode([row for batch in given for row in batch]))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_error_waits_for_its_turn(model: Path, no_wait: None, num_processes: int) -> None:
    given: list[list[Any]] = [[conversation(n)] for n in range(1, 3)] + [[preference(1)], [conversation(1)]]
    found = []
    with Workers(encoder_of(model), num_processes) as pool, pytest.raises(DataError, match="preference pairs"):
        for batch, _ in pool.encoded(given, lambda batch: batch):
            found.append(batch)
    assert found == given[:2]


def test_the_stage_writes_the_same_bytes_with_and_without_workers(
    tmp_path: Path, model: Path, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "batches", lambda items: batches(items, 8))
    rows = [json.dumps(conversation(n).to_json()) if n % 11 else "{broken" for n in range(1, 200)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, *rows[:20]]) + "\n")
    written = []
    for num_workers in (1, 3):
        data = Data(
            (Source(str(tmp_path / "rows.jsonl"), weight=1.5),),
            chat_template="chatml",
            max_length=256,
            num_workers=num_workers,
            validation_fraction=0.1,
            max_bad_rows_fraction=0.5,
        )
        out = tmp_path / str(num_workers)
        recipe = Recipe("t", Model(str(model)), data, output_dir=str(out), train=Train(global_batch_size=1))
        run_dir = RunDir(out / "run")
        stage.run(recipe, run_dir)
        files = sorted(path for path in run_dir.stage("data").rglob("*") if path.is_file())
        written.append({path.relative_to(out).as_posix(): path.read_bytes() for path in files})
    assert written[0] == written[1]
    lines = [
        json.loads(line)["line"]
        for name, text in written[0].items()
        if "quarantine" in name
        for line in text.split(b"\n")
        if line
    ]
    assert lines == sorted(lines) and len(lines) > 20


def test_digests_are_found_again_and_only_they() -> None:
    seen = DigestSet()
    # Equal first bytes: all in one bucket, where the end of one and the beginning of the next may look like a third.
    digests = [bytes([7, 7, *([n] * 13), 7]) for n in range(50)] + [bytes(range(16))]
    for digest in digests:
        assert digest not in seen
        seen.add(digest)
    assert all(digest in seen for digest in digests) and len(seen) == 51
    straddling = digests[0][8:] + digests[1][:8]
    assert bytes(straddling) not in seen and bytes([7, 7, *([60] * 14)]) not in seen
    seen = DigestSet()
    for digest in (bytes([7] * 15 + [1]), bytes([7] * 16)):
        seen.add(digest)
    assert bytes([7] * 14 + [1, 7]) not in seen and bytes([7] * 16) in seen
