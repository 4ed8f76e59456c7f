"""The verdict on one raw answer: decoding, then the category's rule."""

from __future__ import annotations

from functools import cache
from typing import Any

from tunesmith.evaluate.bfcl import checking
from tunesmith.evaluate.bfcl.categories import Category, Language
from tunesmith.evaluate.bfcl.dataset import Entry
from tunesmith.evaluate.bfcl.decoding import Protocol, decode, is_list_of_calls
from tunesmith.evaluate.bfcl.python_calls import Undecodable
from tunesmith.evaluate.bfcl.verdicts import VALID, Verdict, told


def judge(category: Category, entry: Entry, response: Any, protocol: Protocol = "prompt") -> Verdict:
    """Return the verdict on an answer, in the official evaluation's words. Never raises for what an answer holds.

    Raises:
        EnvironmentProblem: Java or JavaScript, and tree-sitter is not installed.
    """
    if category.scorer in ("irrelevance", "relevance"):
        return _judge_relevance(category, response, protocol)
    assert category.scorer == "calls", f"{category.name} is not judged answer by answer"
    try:
        calls = decode(response, protocol, category.language)
    except Undecodable as error:
        return Verdict(False, "ast_decoder:decoder_failed", str(error))
    rules = rules_of(category.language, protocol)
    if protocol == "prompt" and category.language == "python":  # nothing else comes from there
        return checking.check(category.name, entry.functions, entry.ground_truth, calls, rules)
    return judge_calls(category.name, entry, calls, rules)


def judge_calls(category: str, entry: Entry, calls: Any, rules: checking.Rules) -> Verdict:
    """Return the verdict on something decoded."""
    if not is_list_of_calls(calls):
        what = f"{told(calls)} is no list of calls"
        return Verdict(False, "ast_decoder:decoder_wrong_output_format", what)
    return checking.check(category, entry.functions, entry.ground_truth, calls, rules)


@cache
def rules_of(language: Language, protocol: Protocol) -> checking.Rules:
    """Return the rules for a language under a protocol: OpenAI's API allows no dots in names."""
    return checking.Rules(language, underscores=protocol == "fc-openai-tools")


def _judge_relevance(category: Category, response: Any, protocol: Protocol) -> Verdict:
    """Decide by whether the answer holds a call at all; its arguments are not looked at."""
    try:
        decoded = decode(response, protocol)
        reason = "the answer holds no call"
    except Undecodable as error:
        decoded, reason = None, str(error)
    # `[{}]` holds no call either, and is no list of calls.
    has_call = is_list_of_calls(decoded) and len(decoded) > 0
    if category.scorer == "irrelevance":
        if not has_call:
            return VALID
        return Verdict(False, "irrelevance_error:decoder_success", f"a call where none fits: {told(decoded)}")
    return VALID if has_call else Verdict(False, "relevance_error:decoder_failed", reason)
