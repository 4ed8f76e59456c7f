"""The data stage from sources to shards: counts, splits, weights, lengths, cache, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.families import write_family
from tunesmith.artifacts import Dataset, RowCounts
from tunesmith.data import stage
from tunesmith.data.building import length_edge
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data, Model, Recipe, Source, Train
from tunesmith.store.run_dir import RunDir, cache_root
from tunesmith.tokens.shards import Shards
from tunesmith.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_family(tmp_path_factory.mktemp("model"), "chatml")
    (directory / "config.json").write_text(json.dumps({"vocab_size": load_tokenizer(directory).id_limit}))
    return directory


class Workplace:
    """Writes rows and runs the stage over them in one output directory."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self.model = model
        self._runs = iter(range(1_000))

    def write(self, rows: list[dict[str, Any] | str], name: str = "rows.jsonl") -> Source:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (self.path / name).write_text(text)
        return Source(str(self.path / name))

    def recipe(self, *train: Source, objective: Any = "sft", **data: Any) -> Recipe:
        settings = {"chat_template": "chatml", "max_length": 256, "num_workers": 2, "packing": False} | data
        return Recipe(
            "t",
            Model(str(self.model)),
            Data(train, **settings),
            output_dir=str(self.path / "outputs"),
            train=Train(objective=objective, global_batch_size=1),
        )

    def run(self, *train: Source, objective: Any = "sft", **data: Any) -> tuple[Dataset, RunDir]:
        run_dir = RunDir(self.path / "outputs" / "runs" / str(next(self._runs)))
        dataset = stage.run(self.recipe(*train, objective=objective, **data), run_dir)
        assert Dataset.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset
        assert RowCounts(**dataset.counts).unaccounted() == 0
        return dataset, run_dir

    def texts(self, run_dir: RunDir, stored: str | None) -> list[str]:
        assert stored is not None
        tokenizer, shards = load_tokenizer(self.model), Shards(run_dir.absolute(stored))
        return [tokenizer.decode(shards.segment(n, 0)[0].tolist()) for n in range(len(shards))]


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Iterator[Workplace]:
    yield Workplace(tmp_path, model)


def row(n: int) -> dict[str, Any]:
    return {"prompt": f"Question number {n}", "completion": f"Answer {n}"}


def pair(n: int) -> dict[str, Any]:
    return {"prompt": f"Question number {n}", "chosen": f"Yes {n}", "rejected": f"No {n}"}


def test_counts_add_up_over_every_fate(place: Workplace) -> None:
    long = {"prompt": "Long", "completion": "word " * 400}
    bad = ["{broken", {"prompt": "x", "completion": ""}]
    first = place.write([*map(row, range(40)), row(3), row(4), long, *bad], "first.jsonl")
    second = dataclasses.replace(place.write([row(n) for n in range(35, 95)], "second.jsonl"), weight=0.5)
    data = {"validation_fraction": 0.2, "max_bad_rows_fraction": 0.1}
    dataset, run_dir = place.run(first, second, **data)
    counts = RowCounts(**dataset.counts)
    assert counts.read == 105 and counts.quarantined == 2 and counts.duplicates == 2 + 5
    assert counts.overlong_dropped == 1 and counts.truncated == 0
    assert 15 < counts.unweighted < 40 and 5 < counts.validation < 30
    assert counts.train == dataset.num_sequences == len(Shards(run_dir.absolute(dataset.train)))
    train, validation = place.texts(run_dir, dataset.train), place.texts(run_dir, dataset.validation)
    assert len(set(train) | set(validation)) == counts.train + counts.validation
    entries = [json.loads(line) for line in run_dir.quarantine.read_text().splitlines()]
    assert [(Path(e["file"]).name, e["line"]) for e in entries] == [("first.jsonl", 44), ("first.jsonl", 45)]
    assert set(entries[0]) == {"file", "line", "reason", "text"}
    assert [s["format"] for s in dataset.sources] == ["prompt_completion"] * 2
    assert [s["read"] for s in dataset.sources] == [45, 60] and dataset.sources[0]["quarantined"] == 2


def test_numbers_of_the_record_are_those_of_the_shards(place: Workplace) -> None:
    source = dataclasses.replace(place.write([row(n) for n in range(20)]), weight=2.5)
    dataset, run_dir = place.run(source)
    shards = Shards(run_dir.absolute(dataset.train))
    assert dataset.num_sequences == len(shards) and 40 < len(shards) < 60 and shards.num_rows == 20
    assert dataset.num_tokens == shards.lengths.sum()
    assert dataset.num_trained_tokens == shards.num_trained.sum()
    assert dataset.longest_tokens == shards.lengths.max()
    assert sum(dataset.length_histogram.values()) == dataset.num_sequences
    assert [length_edge(length) for length in (1, 9, 64, 65, 200, 256, 257)] == [8, 16, 64, 80, 224, 256, 320]


def test_rows_do_not_move_between_splits_when_others_are_added(place: Workplace) -> None:
    few, few_dir = place.run(place.write([row(n) for n in range(60)]), validation_fraction=0.25)
    rows = [row(n) for n in range(200, 150, -1)] + [row(n) for n in range(59, -1, -1)]
    many, many_dir = place.run(place.write(rows, "more.jsonl"), validation_fraction=0.25)
    before, after = set(place.texts(few_dir, few.validation)), set(place.texts(many_dir, many.validation))
    assert before and before == {text for text in after if text in before | set(place.texts(few_dir, few.train))}


def test_equal_rows_are_never_on_both_sides(place: Workplace) -> None:
    train = place.write([row(n) for n in range(30)], "train.jsonl")
    held_out = place.write([row(n) for n in range(25, 35)], "held_out.jsonl")
    for deduplicate in (True, False):
        dataset, run_dir = place.run(train, validation=(held_out,), deduplicate=deduplicate)
        assert dataset.counts["duplicates"] == 5 and dataset.counts["validation"] == 10
        assert not set(place.texts(run_dir, dataset.train)) & set(place.texts(run_dir, dataset.validation))


def test_duplicates_may_be_kept(place: Workplace) -> None:
    source = place.write([row(1), row(2), row(1)])
    assert place.run(source)[0].counts["duplicates"] == 1
    dataset, _ = place.run(source, deduplicate=False)
    assert dataset.counts["duplicates"] == 0 and dataset.num_sequences == 3


def test_the_same_row_in_another_format_is_a_duplicate(place: Workplace) -> None:
    first = place.write([row(1)], "a.jsonl")
    messages = [{"from": "human", "value": "Question number 1"}, {"from": "gpt", "value": "Answer 1"}]
    second = place.write([{"conversations": messages}, {"conversations": [*messages, *messages]}], "b.jsonl")
    assert place.run(first, second)[0].counts["duplicates"] == 1


def test_max_rows_are_the_first_ones(place: Workplace) -> None:
    source = dataclasses.replace(place.write([row(n) for n in range(9)]), max_rows=4)
    dataset, run_dir = place.run(source)
    assert dataset.counts["read"] == 4
    assert all(f"number {n}<" in text for n, text in enumerate(place.texts(run_dir, dataset.train)))


@pytest.mark.parametrize(("overlong", "kept", "truncated"), [("drop", 2, 0), ("truncate", 3, 1)])
def test_long_rows(place: Workplace, overlong: str, kept: int, truncated: int) -> None:
    unlearnable = {"prompt": "word " * 400, "completion": "x"}
    source = place.write([row(1), row(2), {"prompt": "Long", "completion": "word " * 400}, unlearnable])
    dataset, run_dir = place.run(source, overlong=overlong, max_length=64, max_cut_rows_fraction=1.0)
    assert dataset.counts["train"] == kept and dataset.counts["truncated"] == truncated
    assert dataset.counts["overlong_dropped"] == 4 - kept
    lengths = Shards(run_dir.absolute(dataset.train)).lengths
    assert lengths.max() == (64 if truncated else lengths[0].max())


def test_long_rows_may_be_an_error_that_names_them(place: Workplace) -> None:
    source = place.write([row(1), {"prompt": "Long", "completion": "word " * 400}])
    with pytest.raises(DataError, match=r"1 rows are longer .*rows.jsonl:2 \([\d,]+ tokens\)"):
        place.run(source, overlong="error")
    assert place.run(place.write([row(1)]), overlong="error")[0].num_sequences == 1


def test_long_pairs_keep_their_prompt(place: Workplace) -> None:
    long = {"prompt": "Short", "chosen": "word " * 300, "rejected": "other " * 300}
    same_beginning = {"prompt": "Short", "chosen": "word " * 300 + "a", "rejected": "word " * 300 + "b"}
    long_prompt = {"prompt": "word " * 400, "chosen": "a", "rejected": "b"}
    source = place.write([pair(1), long, same_beginning, long_prompt])
    settings = {"overlong": "truncate", "max_length": 64, "max_cut_rows_fraction": 1.0}
    dataset, run_dir = place.run(source, objective="dpo", **settings)
    assert dataset.counts["train"] == 2 and dataset.counts["truncated"] == 1 and dataset.counts["overlong_dropped"] == 2
    lengths = Shards(run_dir.absolute(dataset.train)).lengths
    assert lengths[1][0] < 30 and (lengths[1][0] + lengths[1][1:] == 64).all()
    assert dataset.longest_tokens == 64
    assert dataset.num_tokens == 2 * lengths[:, 0].sum() + lengths[:, 1:].sum()


def test_objective_and_rows_must_fit(place: Workplace) -> None:
    with pytest.raises(DataError, match=r"preference pairs, and train\.objective is sft"):
        place.run(place.write([pair(1)]))
    with pytest.raises(DataError, match=r"train\.objective is dpo"):
        place.run(place.write([row(1)]), objective="dpo")


def test_a_second_run_takes_the_tokens_from_the_cache(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place.write([row(n) for n in range(20)] + ["{broken"])
    settings = {"validation_fraction": 0.3}
    first, first_dir = place.run(source, **settings)
    monkeypatch.setattr(stage, "_build", lambda *_: pytest.fail("tokenised again"))
    second, second_dir = place.run(source, **settings)
    assert second == first
    for name in ("train/ids.bin", "validation/ids.bin", "quarantine.jsonl"):
        assert (first_dir.stage("data") / name).stat().st_ino == (second_dir.stage("data") / name).stat().st_ino


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 200},
        {"train_on": "all"},
        {"chat_template": "qwen"},
        {"validation_fraction": 0.4},
        {"deduplicate": False},
    ],
)
def test_the_key_follows_what_tokens_depend_on(place: Workplace, change: dict[str, Any]) -> None:
    source = place.write([row(n) for n in range(20)])
    settings = {"validation_fraction": 0.3}
    assert place.run(source, **settings)[0].key != place.run(source, **(settings | change))[0].key


def test_the_key_follows_the_content_of_a_file(place: Workplace) -> None:
    first = place.run(place.write([row(1)]))[0].key
    assert place.run(place.write([row(2)]))[0].key != first == place.run(place.write([row(1)]))[0].key


def test_thresholds_of_preflight_do_not_tokenise_again(place: Workplace) -> None:
    source = place.write([row(1)])
    first = place.run(source)[0].key
    assert place.run(source, min_trained_tokens_fraction=0.0, max_cut_rows_fraction=1.0)[0].key == first
    with pytest.raises(DataError, match="min_trained_tokens_fraction"):
        place.run(source, min_trained_tokens_fraction=0.99)


@pytest.mark.parametrize(
    "name", ["train/ids.bin", "train/meta.json", "record.json", "validation/offsets.bin", "quarantine.jsonl"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_cache_entry_is_made_again(place: Workplace, name: str, damage: str) -> None:
    source = place.write([row(n) for n in range(20)] + ["{broken"])
    first, _ = place.run(source, validation_fraction=0.3)
    path = cache_root(place.path / "outputs") / "tokens" / first.key / name
    content = bytearray(path.read_bytes())
    path.unlink()  # runs hold links to the same file: give the cache one of its own
    if damage == "flip" and name.endswith(".bin"):
        content[0] ^= 1
    if damage != "remove":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    second, run_dir = place.run(source, validation_fraction=0.3)
    assert second == first
    Shards(run_dir.absolute(second.train)).verify()
    Shards(run_dir.absolute(str(second.validation))).verify()
    if damage == "remove":
        assert run_dir.quarantine.exists()


def test_a_stage_that_is_run_again_leaves_nothing_of_before(place: Workplace) -> None:
    source = place.write([row(n) for n in range(20)] + ["{broken"])
    run_dir = RunDir(place.path / "run")
    assert stage.run(place.recipe(source, validation_fraction=0.3), run_dir).validation
    dataset = stage.run(place.recipe(place.write([row(1)])), run_dir)
    assert dataset.validation is None and dataset.quarantine is None
    assert not run_dir.validation_tokens.exists() and not run_dir.quarantine.exists()


def test_too_many_bad_rows_stop_the_run_with_their_reasons(place: Workplace) -> None:
    empty = {"prompt": "x", "completion": ""}
    rows = [*map(row, range(10)), empty, "{broken", empty, empty, {"other": 1}, "[1]"]
    with pytest.raises(DataError) as caught:
        place.run(place.write(rows))
    text = caught.value.render()
    assert "6 of 16 rows are bad (37.5%, allowed 5.0%)" in text
    assert "3× 'completion' is empty (first at" in text and "rows.jsonl:11)" in text
    assert text.count("first at") == 3
    assert place.run(place.write(rows), max_bad_rows_fraction=0.4)[0].counts["quarantined"] == 6


def test_what_the_template_refuses_is_quarantined(place: Workplace) -> None:
    template = place.path / "strict.jinja"
    template.write_text(
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    greeting = {"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "x"}]}
    rows = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "y"}]} for n in range(20)
    ]
    dataset, run_dir = place.run(place.write([*rows, greeting]), chat_template=str(template))
    assert dataset.counts["quarantined"] == 1 and dataset.counts["train"] == 20
    entry = json.loads(run_dir.quarantine.read_text())
    assert entry["line"] == 21 and entry["reason"] == "the chat template says: user first" and "Hi" in entry["text"]


def test_rows_without_anything_to_learn_are_quarantined(place: Workplace) -> None:
    template = place.path / "mute.jinja"
    template.write_text("{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(DataError, match="no token of this row has a loss"):
        place.run(place.write([row(1)]), chat_template=str(template))


def test_empty_and_missing_sources_are_told(place: Workplace) -> None:
    with pytest.raises(DataError, match="no rows"):
        place.run(place.write([]))
    with pytest.raises(DataError, match="there is no file"):
        place.run(Source(str(place.path / "absent.jsonl")))
    assert not list((place.path / "outputs").rglob("*.tmp"))


def test_preflight_refuses_a_template_that_never_ends(place: Workplace) -> None:
    template = place.path / "endless.jinja"
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template.write_text(text + "{% if add_generation_prompt %}assistant: {% endif %}")
    with pytest.raises(DataError, match="never learn to stop"):
        place.run(place.write([row(1)]), chat_template=str(template))


def test_preflight_refuses_ids_beyond_the_model(place: Workplace, tmp_path: Path) -> None:
    small = write_family(tmp_path / "small", "chatml")
    (small / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 300}}))
    place.model = small
    with pytest.raises(DataError, match="embedding table has 300 rows"):
        place.run(place.write([row(1)]))


def test_preflight_refuses_a_doubled_start(place: Workplace, tmp_path: Path) -> None:
    place.model = write_family(tmp_path / "llama", "llama3")
    template = tmp_path / "twice.jinja"
    text = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    text += "{{ m.content }}<|eot_id|>"
    text += "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    template.write_text("{{ bos_token }}" + text)
    with pytest.raises(DataError, match=r"1 rows begin with <\|begin_of_text\|> twice"):
        place.run(place.write([row(1)]), chat_template=str(template))
    template.write_text(text)
    assert place.run(place.write([row(1)]), chat_template=str(template))[0].num_sequences == 1
