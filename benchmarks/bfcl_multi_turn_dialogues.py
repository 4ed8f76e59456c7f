"""Compare the dialogues we hold on BFCL's multi-turn items with those of the official harness, request by request.

    PYTHONPATH=src PYTHON benchmarks/bfcl_multi_turn_dialogues.py --data DIR [--dialogues 1600]

PYTHON is an interpreter with `bfcl-eval==2026.3.23` (see bfcl_multi_turn_vs_official.py) and httpx; DIR is the official
`data` directory, with multi_turn_func_doc/. A made-up model answers both: ground truth, with mistakes, chatter, broken
text and calls that never end. Its answers are the same, so each request (messages, tools) must be, and so must what is
written to the result file and the verdict on it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bfcl_multi_turn_vs_official import MISTAKES, Item, Official, learn_values, load, right

from tunesmith.evaluate.bfcl.multi_turn import long_context
from tunesmith.evaluate.bfcl.multi_turn.checking import check
from tunesmith.evaluate.bfcl.multi_turn.dialogue import Manner, converse
from tunesmith.evaluate.bfcl.multi_turn.functions import describe
from tunesmith.evaluate.bfcl.multi_turn.replies import turns_of
from tunesmith.evaluate.bfcl.prompts import openai_tools, system_prompt
from tunesmith.evaluate.bfcl.task import response_of
from tunesmith.evaluate.client import Answer, Request, ToolCall
from tunesmith.evaluate.wire import chat_messages


class _Anything:
    """Stands for a decorator, a class or a condition of a vendor's package; none of them is needed here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, function: Any, *_: Any, **__: Any) -> Any:
        return function

    def __or__(self, _: Any) -> _Anything:
        return self


class _Vendor(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return (lambda function: function) if name == "final" else _Anything


def official_handler(protocol: str) -> Any:
    """Return the official handler of OpenAI's API with a network that is a list of answers."""
    for name in ("overrides", "openai", "tenacity", "filelock", "dotenv"):
        if name not in sys.modules:
            try:
                __import__(name)
            except ImportError:
                sys.modules[name] = _Vendor(name)
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

    class Scripted(OpenAICompletionsHandler):  # type: ignore[misc]
        def __init__(self) -> None:
            self.model_name_underline_replaced = self.model_name = self.registry_name = "model"
            self.is_fc_model, self.temperature = protocol == "fc-openai-tools", 0
            self.model_style = __import__("bfcl_eval.constants.enums", fromlist=["x"]).ModelStyle.OPENAI_COMPLETIONS

        def generate_with_backoff(self, **asked: Any) -> tuple[Any, float]:
            self.asked.append(copy.deepcopy([asked["messages"], asked.get("tools", [])]))
            return next(self.answers), 0.0

    return Scripted()


# Notations that decoding treats in ways of its own.
_ODD = (
    "[f(x={})]",
    "[f(x={'a': {'b': 1}, 'c': {'d': 2}})]",
    "[f(x={'a': 1, 'b': {'c': {}}})]",
    "[pwd(), say(x=g(y=1), z=h(), w=[{'a': {'b': 1}}])]",
    "cat('a'), ls(a=true, b=-1, c=2**3)",
    "[a.b.c(d=e[0], **f)]",
    "[5]",
    "ls",
)


def script(item: Item, draw: random.Random, protocol: str) -> Iterator[Answer]:
    """Yield replies for ever: the ground truth's calls with some mistakes, and words at the end of each turn."""
    turns = right(item[1])
    for mistake in draw.choices(MISTAKES, k=draw.choice((0, 0, 1, 2))):
        if turns:
            mistake(turns, draw)
    never_ends = draw.random() < 0.05
    while True:
        for steps in turns or [[]]:
            for step in steps:
                yield from [_answer(step, draw, protocol)] * (30 if never_ends else 1)
            yield Answer(text=draw.choice(("Done.", "", "[]", "I cannot do this", "[cd(", *_ODD)))


def _answer(step: list[str], draw: random.Random, protocol: str) -> Answer:
    if protocol == "prompt":
        return Answer(text=draw.choice(("[%s]", "%s", "```%s```", "[%s")) % ", ".join(step))
    calls = tuple(_tool_call(call) for call in step)
    return Answer(text=draw.choice(("", "Let me see.")), tool_calls=calls)


def _tool_call(call: str) -> ToolCall:
    import ast

    name = call.split("(")[0]
    try:
        node = ast.parse(call, mode="eval").body
        assert isinstance(node, ast.Call)
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        return ToolCall(name, json.dumps(given))
    except (SyntaxError, ValueError, AssertionError):
        return ToolCall(name, "{broken")


def as_vendor(answer: Answer) -> Any:
    """Return an answer as OpenAI's client gives it."""
    calls = [
        types.SimpleNamespace(id=f"id{n}", function=types.SimpleNamespace(name=c.name, arguments=c.arguments))
        for n, c in enumerate(answer.tool_calls)
    ]
    message = types.SimpleNamespace(content=answer.text, tool_calls=calls or None)
    usage = types.SimpleNamespace(prompt_tokens=0, completion_tokens=0)
    return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)], usage=usage)


def plain(messages: list[Any]) -> list[Any]:
    """Return messages as role, text and calls, whatever they are made of and whatever their calls are numbered."""
    found = []
    for message in messages:
        if isinstance(message, dict):
            calls = [call["function"] for call in message.get("tool_calls") or []]
            pairs = [(call["name"], call["arguments"]) for call in calls]
            found.append([message["role"], message["content"], pairs])
        else:
            pairs = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
            found.append(["assistant", message.content, pairs])
    return found


def hold(item: dict[str, Any], manner: Manner, answers: Iterator[Answer]) -> tuple[list[Any], Any]:
    """Return our requests and result."""
    asked: list[Any] = []
    dialogue = converse(item, manner)
    try:
        request: Request = next(dialogue)
        while True:
            asked.append([plain(chat_messages(request.messages)), list(request.tools)])
            request = dialogue.send(next(answers))
    except StopIteration as stop:
        return asked, stop.value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dialogues", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    items, draw, official = load(options.data), random.Random(options.seed), Official()
    learn_values(items)
    found = long_context.find(options.data)
    text = long_context.read(found) if found else None
    functions = describe(options.data)
    num_requests = num_cut_short = 0
    for protocol in ("prompt", "fc-openai-tools"):
        handler = official_handler(protocol)
        manner = Manner(
            protocol,
            functions,
            system_prompt,
            openai_tools,
            functools.partial(response_of, protocol=protocol),
            4096,
            text,
        )
        for number in range(options.dialogues // 2):
            item, wanted = items[(number * 7) % len(items)]
            seed = draw.random()
            official.forget()
            handler.asked, handler.answers = [], map(as_vendor, script((item, wanted), random.Random(seed), protocol))
            theirs = run_official(handler, item, options.data)
            asked, result = hold(item, manner, script((item, wanted), random.Random(seed), protocol))
            wished = [[plain(messages), tools] for messages, tools in handler.asked]
            if asked != wished or result != theirs:
                tell(item["id"], asked, wished, result, theirs)
                return 1
            num_requests += len(asked)
            num_cut_short += len(result) < len(wanted)
            turns = turns_of(result, protocol)
            if turns != official_turns(handler, result):
                print(item["id"], "decoded turns differ:", result, turns)
                return 1
            ours = check(item, wanted, turns, text)
            if (ours.valid, ours.error_type) != official.verdict(item, wanted, turns):
                print(item["id"], "verdicts differ:", ours)
                return 1
    print(f"{options.dialogues} dialogues, {num_requests} requests, {num_cut_short} cut short: all agree")
    return 0


def run_official(handler: Any, item: dict[str, Any], data: Path) -> Any:
    """Hold the dialogue with the official harness, on an item prepared by it."""
    import contextlib
    import io

    from bfcl_eval import utils

    entry = copy.deepcopy(item)
    utils.MULTI_TURN_FUNC_DOC_PATH = data / "multi_turn_func_doc"
    utils.load_file = lambda path, **_: [json.loads(line) for line in Path(path).read_text().splitlines()]
    (entry,) = utils.add_language_specific_hint_to_function_doc(
        utils.populate_test_cases_with_predefined_functions([entry])
    )
    with contextlib.redirect_stdout(io.StringIO()):
        result, _ = handler.inference(entry, include_input_log=False, exclude_state_log=True)
    return result


def official_turns(handler: Any, result: list[list[Any]]) -> list[list[list[str]]]:
    """Decode a result as eval_runner.py does."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import is_empty_execute_response

    turns = []
    for turn in result:
        steps = []
        for reply in turn:
            try:
                decoded = handler.decode_execute(reply, has_tool_call_tag=False)
            except Exception:  # noqa: BLE001 - as the official runner does
                continue
            if not is_empty_execute_response(decoded):
                steps.append(decoded)
        turns.append(steps)
    return turns


def tell(identifier: str, asked: list[Any], wished: list[Any], result: Any, theirs: Any) -> None:
    """Show where two dialogues part."""
    for number, (ours, official) in enumerate(zip(asked, wished, strict=False)):
        if ours != official:
            print(f"{identifier}: request {number}\n  ours     {str(ours)[-1500:]}\n  official {str(official)[-1500:]}")
            return
    print(f"{identifier}: {len(asked)} requests, official {len(wished)}\n  ours     {result}\n  official {theirs}")


if __name__ == "__main__":
    sys.exit(main())
