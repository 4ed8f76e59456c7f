"""Verdicts on multi-turn answers: each error the official checker knows, and what does not count as one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.multi_turn import long_context
from tunesmith.evaluate.bfcl.multi_turn.checking import check

ITEM: dict[str, Any] = {
    "id": "multi_turn_base_900",
    "involved_classes": ["GorillaFileSystem", "TwitterAPI", "MathAPI"],
    "initial_config": {
        "GorillaFileSystem": {
            "root": {"w": {"type": "directory", "contents": {"a.txt": {"type": "file", "content": "one\ntwo"}}}}
        },
        "TwitterAPI": {"username": "ann", "password": "pw", "authenticated": True},
    },
}
WANTED = [
    ["mkdir(dir_name='old')", "mv(source='a.txt', destination='old')"],
    [],
    ["post_tweet(content='moved')", "mean([1, 2])"],
]
RIGHT = [[WANTED[0]], [], [WANTED[2]]]


def verdict(turns: Any) -> tuple[bool, str]:
    found = check(ITEM, WANTED, turns)
    assert bool(found.error) is not found.valid  # whoever is wrong is told why
    return found.valid, found.error_type


def test_ground_truth_is_right() -> None:
    assert verdict(RIGHT) == (True, "")


@pytest.mark.parametrize(
    ("turns", "error_type"),
    [
        # right in other ways: in more steps, with more calls that change nothing, in another order within a turn
        ([[["mkdir('old')"], ["ls()"], ["mv('a.txt', 'old')"]], [["pwd()"]], [WANTED[2][::-1]]], ""),
        ([[WANTED[0]], [], [["mean([1, 2])"], [], WANTED[2]]], ""),
        # done earlier, where it was not yet to be: its result counts later, its state is wrong now
        ([[[*WANTED[0], "mean([1, 2])"]], [], [["post_tweet('moved')"]]], ""),
        ([[[*WANTED[0], "post_tweet('moved')"]], [], [["mean([1, 2])"]]], "multi_turn:instance_state_mismatch"),
        # what is done in a turn without ground truth counts in the next
        ([[WANTED[0]], [["touch('b')"]], [WANTED[2]]], "multi_turn:instance_state_mismatch"),
        ([[WANTED[0]], [["post_tweet('moved')"]], [["mean([1, 2])"]]], ""),
        ([[WANTED[0]], [], []], "multi_turn:empty_turn_model_response"),
        ([[WANTED[0]], [], [[]]], "multi_turn:empty_turn_model_response"),
        ([[WANTED[0]], [], [[], []]], "multi_turn:instance_state_mismatch"),  # two empty steps are not empty
        ([[WANTED[0]], [], [["post_tweet('moved')"]]], "multi_turn:execution_response_mismatch"),
        ([[WANTED[0]], [], [["post_tweet('moved')", "mean([1, 3])"]]], "multi_turn:execution_response_mismatch"),
        ([[WANTED[0]], [], [["post_tweet('Moved')", "mean([1, 2])"]]], "multi_turn:instance_state_mismatch"),
        ([[["mkdir('old')"]], [], [WANTED[2]]], "multi_turn:instance_state_mismatch"),
        ([[["mv('a.txt', 'old')", "mkdir('old')"]], [], [WANTED[2]]], "multi_turn:instance_state_mismatch"),
        ([[WANTED[0]], []], "multi_turn:force_terminated"),
        ([], "multi_turn:force_terminated"),
        ([[], [], [], []], "multi_turn:force_terminated"),
        ("an error", "multi_turn:inference_error"),
        (None, "multi_turn:inference_error"),
    ],
)
def test_verdicts(turns: Any, error_type: str) -> None:
    assert verdict(turns) == (not error_type, error_type)


def test_a_result_that_is_wanted_twice_must_be_there_twice() -> None:
    wanted = [["mean([1, 2])", "mean([1, 2])"]]
    assert check(ITEM, wanted, [[["mean([1, 2])"]]]).error_type == "multi_turn:execution_response_mismatch"
    assert check(ITEM, wanted, [[["mean([1, 2])"], ["mean([2, 1])"]]]).valid


def test_text_that_looks_like_a_call_of_a_method_is_never_right() -> None:
    """The official checker writes the name of an object of its own into it, and model and ground truth have two."""
    call = "post_tweet(content='I sort (by name)')"
    assert check(ITEM, [[call]], [[[call]]]).error_type == "multi_turn:instance_state_mismatch"
    harmless = "post_tweet(content='I order (by name)')"
    assert check(ITEM, [[harmless]], [[[harmless]]]).valid


def test_tweets_without_mentions_share_one_list() -> None:
    """As in the official checker: the list belongs to the method, so what one simulation adds the other sees."""
    wanted = [["post_tweet(content='a')", "mention(tweet_id=0, mentioned_usernames=['@b'])"]]
    assert check(ITEM, wanted, [[wanted[0]]]).error_type == "multi_turn:execution_response_mismatch"
    apart = [[wanted[0][0]], [wanted[0][1]]]
    assert check(ITEM, apart, [[turn] for turn in apart]).valid


def test_items_do_not_change_each_other_or_the_data() -> None:
    before = json.dumps(ITEM)
    for _ in range(2):
        assert check(ITEM, WANTED, RIGHT).valid
    assert json.dumps(ITEM) == before


LONG_ITEM = {
    "id": "multi_turn_long_context_900",
    "involved_classes": ["GorillaFileSystem", "TravelAPI"],
    "initial_config": {
        "GorillaFileSystem": ITEM["initial_config"]["GorillaFileSystem"],
        "TravelAPI": {"credit_card_list": {}, "booking_record": {}, "access_token": "t", "token_expires_in": 2},
    },
}


def test_long_context_is_added_to_items_that_say_so() -> None:
    wanted = [["wc('a.txt', 'c')"]]
    assert check(LONG_ITEM, wanted, [[wanted[0]]]).valid
    result = check(LONG_ITEM, wanted, [[["wc('a.txt')"]]]).error
    assert '"type": "characters"' in result and '"count": 7' not in result
    assert '"count": 7' in check(ITEM, wanted, [[["wc('a.txt')"]]]).error


OFFICIAL_FILE = """
FILE_CONTENT_EXTENSION = " and much more"
FILES_TAIL_USED = ["log.txt"]
POPULATE_FILE_EXTENSION = ["image_1.jpg"]
WATCH_LIST_EXTENSION = ["A", ...]
TRANSACTION_HISTORY_EXTENSION = []
MA_5_EXTENSION = [1.5]
MA_20_EXTENSION = [2.5]
TECHNOLOGY_EXTENSION = []
AUTOMOBILE_EXTENSION = []
ORDER_DETAIL_EXTENSION = {"about": "of {symbol}"}
CAR_STATUS_METADATA_EXTENSION = "car"
LONG_WEATHER_EXTENSION = {}
PARKING_BRAKE_INSTRUCTION = "pull"
INTERMEDIARY_CITIES = ["Here"]
CREDIT_CARD_EXTENSION = {"1": {"balance": 5.0}}
BOOKING_RECORD_EXTENSION = {}
"""


def test_the_official_long_text_is_read_where_it_is(tmp_path: Path) -> None:
    assert long_context.find(tmp_path) is None
    (tmp_path / "long_context.py").write_text(OFFICIAL_FILE)
    found = long_context.find(tmp_path)
    assert found is not None
    text = long_context.read(found)
    assert text.file_tail == " and much more" and text.watch_list == ("A", ...)
    wanted = [["wc('a.txt', 'c')"]]
    assert '"count": 21' in check(LONG_ITEM, wanted, [[["pwd()"]]], text).error


@pytest.mark.parametrize("text", ["import os\n", "FILE_CONTENT_EXTENSION = open('x')\n", "=", ""])
def test_another_file_in_its_place_is_told_and_never_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "long_context.py").write_text(text)
    with pytest.raises(DataError, match="not the official file of constants"):
        long_context.read(tmp_path / "long_context.py")


DATA = Path(os.environ.get("TUNESMITH_BFCL_DATA", "/nonexistent"))


@pytest.mark.skipif(not DATA.is_dir(), reason="TUNESMITH_BFCL_DATA names no directory with the official data")
@pytest.mark.parametrize("category", ["base", "miss_func", "miss_param", "long_context"])
def test_ground_truth_replayed_is_right(category: str) -> None:
    name = f"BFCL_v4_multi_turn_{category}.json"
    items = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    wanted = [json.loads(line)["ground_truth"] for line in (DATA / "possible_answer" / name).read_text().splitlines()]
    wrong = [
        item["id"]
        for item, turns in zip(items, wanted, strict=True)
        if not check(item, turns, [[turn] if turn else [] for turn in turns]).valid
    ]
    assert len(items) == 200 and wrong == []
