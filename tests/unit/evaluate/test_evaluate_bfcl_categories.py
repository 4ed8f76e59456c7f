"""Names, collections and summary numbers of the leaderboard."""

import pytest

from tunesmith.errors import UsageError
from tunesmith.evaluate.bfcl.categories import CATEGORIES, COLLECTIONS, Accuracy, aggregate, category, expand


def test_item_counts_are_those_of_version_4():
    def count(name):
        return sum(CATEGORIES[member].num_items for member in COLLECTIONS[name])

    assert (count("non_live"), count("live"), count("multi_turn"), count("agentic")) == (1390, 2251, 800, 665)
    assert count("all_scoring") == 5106
    calls = sum(c.num_items for c in CATEGORIES.values() if c.scorer == "calls")
    assert calls == 2501


def test_renamed_categories_answer_to_both_names():
    assert category("simple") is category("simple_python")
    assert category("java") is category("simple_java")
    assert category("javascript") is category("simple_javascript")
    assert [c.name for c in expand(["simple", "simple_python", "java"])] == ["simple_python", "simple_java"]


def test_collections_expand_in_the_official_order_and_once():
    assert [c.name for c in expand(["non_python", "multiple"])] == ["simple_java", "simple_javascript", "multiple"]
    assert len(expand(["all", "live"])) == len(CATEGORIES)
    assert {c.name for c in expand(["python"])} == {c.name for c in expand(["single_turn"])} - {
        c.name for c in expand(["non_python"])
    }


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'live_multiple'"):
        expand(["live_multipel"])
    with pytest.raises(UsageError, match="choose from: simple_python"):
        category("qqqqq")


def test_simple_is_a_mean_over_languages_and_live_a_mean_over_items():
    made = aggregate(
        {
            "simple_python": Accuracy(0.9, 400),
            "simple_java": Accuracy(0.6, 100),
            "simple_javascript": Accuracy(0.3, 50),
            "multiple": Accuracy(1.0, 200),
            "parallel": Accuracy(0.8, 200),
            "parallel_multiple": Accuracy(0.6, 200),
            "live_simple": Accuracy(1.0, 258),
            "live_multiple": Accuracy(0.0, 1053),
            "live_parallel": Accuracy(0.0, 16),
            "live_parallel_multiple": Accuracy(0.0, 24),
        }
    )
    assert made["non_live_simple"].value == pytest.approx(0.6)
    assert made["non_live"].value == pytest.approx((0.6 + 1.0 + 0.8 + 0.6) / 4)
    assert made["live"].value == pytest.approx(258 / 1351)
    assert made["overall"].value == pytest.approx(0.1 * 0.75 + 0.1 * 258 / 1351)
    assert made["non_live"].is_complete and made["live"].is_complete and not made["overall"].is_complete
    assert "multi_turn" not in made and "irrelevance_overall" not in made


def test_missing_categories_count_as_nothing_and_are_told():
    made = aggregate({"simple_python": Accuracy(0.9, 100), "irrelevance": Accuracy(1.0, 240)})
    assert made["non_live_simple"] == Accuracy(pytest.approx(0.3), 100, is_complete=False)
    assert made["irrelevance_overall"].value == 0.5
    full = aggregate({name: Accuracy(1.0, c.num_items) for name, c in CATEGORIES.items()})
    assert full["overall"].value == 1.0 and full["overall"].is_complete
