"""Reading a directory in the official layout, and what is said when it is none."""

import json

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl import dataset
from tunesmith.evaluate.bfcl.categories import category


def _item(identifier):
    return {
        "id": identifier,
        "question": [[{"role": "user", "content": "go"}]],
        "function": [{"name": "f", "description": "", "parameters": {"type": "dict", "properties": {}}}],
    }


def _write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _directory(tmp_path, stem="BFCL_v4_simple_python", ids=("simple_python_0", "simple_python_1")):
    _write(tmp_path / f"{stem}.json", [_item(i) for i in ids])
    _write(tmp_path / "possible_answer" / f"{stem}.json", [{"id": i, "ground_truth": [{"f": {}}]} for i in ids])
    return tmp_path


def test_items_come_in_the_files_order_with_their_ground_truth(tmp_path):
    read = dataset.load(category("simple"), _directory(tmp_path))
    assert read.version == "BFCL_v4"
    assert [entry.id for entry in read.entries] == ["simple_python_0", "simple_python_1"]
    assert read.entries[0].ground_truth == ({"f": {}},)
    assert read.entries[0].turns[0][0]["content"] == "go"


def test_names_of_before_version_4_are_found_and_the_newest_version_wins(tmp_path):
    _directory(tmp_path, "BFCL_v3_simple", ("simple_0",))
    assert dataset.load(category("simple_python"), tmp_path).version == "BFCL_v3"
    _directory(tmp_path)
    assert dataset.load(category("simple_python"), tmp_path).version == "BFCL_v4"


def test_irrelevance_needs_no_ground_truth(tmp_path):
    _write(tmp_path / "BFCL_v4_irrelevance.json", [_item("irrelevance_0")])
    assert dataset.load(category("irrelevance"), tmp_path).entries[0].ground_truth == ()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "possible_answer/BFCL_v4_simple_python.json").unlink(), "ground truth of this category"),
        (lambda d: (d / "BFCL_v4_simple_python.json").unlink(), "holds no BFCL_v.*simple_python.json"),
        (lambda d: _write(d / "BFCL_v4_simple_python.json", [_item("simple_python_0")]), "2 answers for 1 items"),
        (
            lambda d: _write(d / "BFCL_v4_simple_python.json", [_item("simple_python_1"), _item("simple_python_0")]),
            "'simple_python_0' stands where 'simple_python_1' is asked",
        ),
        (lambda d: (d / "BFCL_v4_simple_python.json").write_text('{"id": "a"\n'), "json:1: this line is not JSON"),
        (lambda d: (d / "BFCL_v4_simple_python.json").write_text("[]\n"), "has no `id`"),
        (
            lambda d: _write(d / "BFCL_v4_simple_python.json", [{"id": "a", "question": "go"}, _item("b")]),
            "simple_python.json:1: ",
        ),
    ],
)
def test_what_is_wrong_with_a_directory_is_told_with_its_place(tmp_path, break_it, message):
    directory = _directory(tmp_path)
    break_it(directory)
    with pytest.raises(DataError, match=message):
        dataset.load(category("simple_python"), directory)


def test_a_missing_directory_is_told(tmp_path):
    with pytest.raises(DataError, match="no such directory"):
        dataset.load(category("multiple"), tmp_path / "nowhere")
