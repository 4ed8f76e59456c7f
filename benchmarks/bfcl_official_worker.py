"""The official BFCL checker behind a pipe: answers in, verdicts and the time they took out. Needs only `bfcl-eval`.

Run by `bfcl_vs_official.py` with the interpreter of an environment that has

    pip install --no-deps bfcl-eval==2026.3.23
    pip install tree_sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4 tenacity filelock

One line in is `{"answers": [[category, functions, ground truth, response, notation, tagged], …]}`, one line out
`{"verdicts": [[valid, error type], …], "seconds": …}`. `{"prompts": [[category, functions, form], …]}` is answered by
`{"prompts": [[system prompt, tools for OpenAI's API], …]}`. An answer on which the checker raises has the verdict
`[false, "raised"]`: the official evaluation ends there.

The package's table of models imports every vendor's SDK; the checker reads one attribute of it. It is replaced by a
table in which every model has that attribute.
"""

import contextlib
import io
import json
import sys
import time
import types


class _Model:
    underscore_to_dot = False


class _OpenAiModel:
    underscore_to_dot = True


table = types.ModuleType("bfcl_eval.constants.model_config")
table.MODEL_CONFIG_MAPPING = {"plain": _Model, "openai": _OpenAiModel}
sys.modules[table.__name__] = table

from bfcl_eval.constants.enums import Language, ModelStyle, ReturnFormat  # noqa: E402
from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402
from bfcl_eval.model_handler.utils import (  # noqa: E402
    convert_to_tool,
    default_decode_ast_prompting,
    formulate_system_prompt,
)
from bfcl_eval.utils import (  # noqa: E402
    _func_doc_language_specific_pre_processing,
    is_empty_output,
    is_function_calling_format_output,
    is_java,
    is_js,
)


def decoded(response, notation, tagged):
    """Return the calls of an answer, as the official handlers for prompts and for OpenAI's API read them."""
    if notation == "openai":
        calls = []
        for invoked in response:
            name = next(iter(invoked.keys()))
            calls.append({name: json.loads(invoked[name])})
        return calls
    return default_decode_ast_prompting(response, ReturnFormat(notation), tagged)


def verdict(category, functions, truth, response, notation, tagged):
    """Return what `_evaluate_single_ast_entry` and `_evaluate_single_relevance_entry` return, without their records."""
    if "relevance" in category:
        try:
            has_call = not is_empty_output(decoded(response, notation, tagged))
        except Exception:  # noqa: BLE001 - as the official runner does
            has_call = False
        if "irrelevance" in category:
            return (True, "") if not has_call else (False, "irrelevance_error:decoder_success")
        return (True, "") if has_call else (False, "relevance_error:decoder_failed")
    try:
        calls = decoded(response, notation, tagged)
    except Exception:  # noqa: BLE001 - as the official runner does
        return False, "ast_decoder:decoder_failed"
    if not is_function_calling_format_output(calls):
        return False, "ast_decoder:decoder_wrong_output_format"
    language = Language.JAVA if is_java(category) else Language.JAVASCRIPT if is_js(category) else Language.PYTHON
    model = "openai" if notation == "openai" else "plain"
    result = ast_checker(functions, calls, truth, language, category, model)
    return (True, "") if result["valid"] else (False, result["error_type"])


def guarded(answer):
    """Return the verdict, or `raised` where the checker ends with an exception."""
    try:
        return verdict(*answer)
    except Exception:  # noqa: BLE001 - which one does not matter: there is no verdict
        return False, "raised"


def prompt(category, functions, form):
    """Return what the official package asks with, as a system prompt and as tools."""
    functions = _func_doc_language_specific_pre_processing(functions, category)
    text = formulate_system_prompt(form, functions)
    return text, convert_to_tool(functions, GORILLA_TO_OPENAPI, ModelStyle.OPENAI_COMPLETIONS)


def main():
    """Answer lines until there are none."""
    sys.setrecursionlimit(1_000)
    for line in sys.stdin:
        document = json.loads(line)
        if "prompts" in document:
            sys.stdout.write(json.dumps({"prompts": [prompt(*asked) for asked in document["prompts"]]}) + "\n")
            sys.stdout.flush()
            continue
        answers = document["answers"]
        with contextlib.redirect_stdout(io.StringIO()):  # the JavaScript converter prints
            started = time.perf_counter()
            verdicts = [guarded(answer) for answer in answers]
            seconds = time.perf_counter() - started
        sys.stdout.write(json.dumps({"verdicts": verdicts, "seconds": seconds}) + "\n")
        sys.stdout.flush()


main()
