"""`data show`, `data convert` and the estimate of `plan`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.families import write_family
from tunesmith.data.convert import convert
from tunesmith.data.estimate import estimate
from tunesmith.data.show import show
from tunesmith.data.stage import run
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data, Model, Recipe, Source, Train
from tunesmith.store.run_dir import RunDir

U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Hello\nyou"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(tmp_path: Path, path: Path, *, objective: Any = "sft", weight: float = 1.0, **data: Any) -> Recipe:
    model = tmp_path / "model"
    if not model.exists():
        write_family(model, "chatml")
    settings = {"chat_template": "chatml"} | data
    source = Source(str(path), weight=weight)
    output_dir = str(tmp_path / "out")
    return Recipe("t", Model(str(model)), Data((source,), **settings), output_dir=output_dir, train=Train(objective))


def test_show_marks_what_is_trained_and_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": [U, A, U]}, {"messages": [U, A]}])
    plain = [str(piece) for piece in show(recipe(tmp_path, path), 1, coloured=False)]
    assert plain[0] == "⟦trained⟧  context  ⟪cut⟫"
    assert plain[1].startswith(f"{path}:1  ") and "trained" in plain[1] and "cut" not in plain[1]
    assert plain[2] == (
        "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦Hello⏎\nyou<|im_end|>⟧⏎\n<|im_start|>user⏎\nHi<|im_end|>⏎\n"
    )
    cut = [str(piece) for piece in show(recipe(tmp_path, path, max_length=12), 1, coloured=False)]
    assert cut[2].startswith("<|im_start|>user") and cut[2].endswith("⟫") and "cut" in cut[1]
    assert cut[2].replace("⟪", "").replace("⟫", "").replace("⟦", "").replace("⟧", "") == plain[2].replace(
        "⟦", ""
    ).replace("⟧", "")


def test_show_colours_and_plain_text_say_the_same(tmp_path: Path) -> None:
    from rich.text import Text

    path = write(tmp_path / "rows.jsonl", [{"messages": [U, A | {"content": "你好 🙂 龘"}]}])
    _, numbers, line = show(recipe(tmp_path, path), 3)
    assert isinstance(line, Text) and isinstance(numbers, str)
    assert line.plain == "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n你好 🙂 龘<|im_end|>⏎\n"
    trained = "".join(line.plain[span.start : span.end] for span in line.spans if "green" in str(span.style))
    assert trained == "你好 🙂 龘<|im_end|>"


def test_show_pairs_and_splits(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "Hi", "chosen": "good", "rejected": "bad"}])
    titles = [str(piece) for piece in show(recipe(tmp_path, pairs, objective="dpo"), 5, coloured=False)]
    assert "chosen" in titles[1] and "⟦good<|im_end|>⟧" in titles[2]
    assert "rejected" in titles[3] and "⟦bad<|im_end|>⟧" in titles[4]
    rows = write(tmp_path / "rows.jsonl", [{"prompt": f"Hi {n}", "completion": "x"} for n in range(30)])
    half = recipe(tmp_path, rows, validation_fraction=0.5)
    places = [
        {p for p in show(half, 99, split, coloured=False) if ".jsonl" in str(p)} for split in ("train", "validation")
    ]
    assert len(places[0]) + len(places[1]) == 30 and not places[0] & places[1] and places[1]
    with pytest.raises(DataError, match="validation split has no rows"):
        list(show(recipe(tmp_path, rows), 1, "validation"))


def test_convert_writes_messages(tmp_path: Path) -> None:
    same = '{"messages":[{"role":"user","content":"äöü"},{"role":"assistant","content":"x"}],"id":7}'
    (tmp_path / "a.jsonl").write_text(same + "\n{broken\n")
    pretty = "\n".join(json.dumps({"messages": [U, A]}, indent=2) for _ in range(2))
    (tmp_path / "b.json").write_text(pretty)
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x"}]})
    )
    out = tmp_path / "out" / "all.jsonl"
    counts = convert([tmp_path / "a.jsonl", tmp_path / "b.json", tmp_path / "c.jsonl"], out)
    assert counts == {"read": 5, "converted": 3, "unchanged": 1, "quarantined": 1}
    written = out.read_text().splitlines()
    assert written[0] == same and json.loads(written[1]) == {"messages": [U, A]}
    quarantine = json.loads((tmp_path / "out" / "all.jsonl.quarantine.jsonl").read_text())
    assert quarantine["line"] == 2
    again = convert([out], tmp_path / "again.jsonl")
    assert again["unchanged"] == again["read"] == 4 and (tmp_path / "again.jsonl").read_text() == out.read_text()


def test_convert_follows_the_tree_of_a_chatgpt_export(tmp_path: Path) -> None:
    def node(parent: str | None, role: str, text: str) -> dict[str, Any]:
        return {
            "parent": parent,
            "message": {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}},
        }

    mapping = {
        "1": node(None, "user", "Hi"),
        "2": node("1", "assistant", "no"),
        "3": node("1", "assistant", "Hello\nyou"),
    }
    (tmp_path / "conversations.json").write_text(json.dumps([{"title": "t", "mapping": mapping, "current_node": "3"}]))
    convert([tmp_path / "conversations.json"], tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"messages": [U, A]}


def test_convert_keeps_pairs_as_pairs(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [{"prompt": "Hi", "chosen": "a", "rejected": "b"}])
    convert([tmp_path / "pairs.jsonl"], tmp_path / "out.jsonl")
    assert set(json.loads((tmp_path / "out.jsonl").read_text())) == {
        "prompt_messages",
        "chosen_messages",
        "rejected_messages",
    }


def test_convert_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        convert([tmp_path / "bad.jsonl"], tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="one of the inputs"):
        convert([tmp_path], tmp_path / "bad.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_estimate_of_few_rows_is_exact(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi " * n, "completion": "x " * (3 * n)} for n in range(1, 25)]
    own = recipe(tmp_path, write(tmp_path / "rows.jsonl", rows))
    found = estimate(own, tmp_path / "model")
    made = run(own, RunDir(tmp_path / "run"))
    assert found.exact and found.notes == () and found.sampled_rows == 24
    assert (found.num_rows, found.num_sequences_per_epoch) == (24, made.num_sequences)
    assert (found.num_tokens, found.num_trained_tokens) == (made.num_tokens, made.num_trained_tokens)
    assert found.longest_tokens == made.longest_tokens and found.formats == {
        str(tmp_path / "rows.jsonl"): "prompt_completion"
    }


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz"])
def test_estimate_of_many_rows_is_near(tmp_path: Path, name: str) -> None:
    import csv
    import gzip
    import io

    rows = [{"prompt": f"Question {n} " + "a" * (n % 37), "completion": "x " * (n % 11 + 1)} for n in range(3_000)]
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".csv"):
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, ["prompt", "completion"])
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    own = recipe(tmp_path, path, weight=2.0, validation_fraction=0.1)
    found = estimate(own, tmp_path / "model")
    made = run(own, RunDir(tmp_path / "run"))
    assert not found.exact and found.sampled_rows <= 48
    assert found.num_rows == pytest.approx(3_000, rel=0.05)
    assert found.num_sequences_per_epoch == pytest.approx(made.num_sequences, rel=0.08)
    assert found.num_tokens == pytest.approx(made.num_tokens, rel=0.15)


def test_estimate_tells_what_it_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b " * (200 if n % 2 else 1)} for n in range(20)] + [{"prompt": ""}]
    found = estimate(recipe(tmp_path, write(tmp_path / "rows.jsonl", rows), max_length=64), tmp_path / "model")
    assert not found.exact and "10 of 21 sampled rows are too long" in " ".join(found.notes)
    assert "1 of 21 sampled rows cannot be used" in " ".join(found.notes)
    assert found.num_sequences_per_epoch == 10
    whole = recipe(tmp_path, tmp_path / "rows.jsonl", max_length=64, overlong="truncate")
    assert estimate(whole, tmp_path / "model").longest_tokens == 64


def test_estimate_raises_what_the_stage_would(tmp_path: Path) -> None:
    own = recipe(tmp_path, tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="there is no file"):
        estimate(own, tmp_path / "model")
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    good = recipe(tmp_path, path)
    absent = dataclasses.replace(good, data=dataclasses.replace(good.data, validation=(Source("absent.jsonl"),)))
    with pytest.raises(DataError, match="there is no file"):
        estimate(absent, tmp_path / "model")


def test_estimate_is_light() -> None:
    heavy = ["torch", "transformers", "numpy", "rich", "datasets", "pyarrow", "jinja2", "tokenizers"]
    code = "import sys, tunesmith.data.estimate, tunesmith.rows.examples; "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
