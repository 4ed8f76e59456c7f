"""How much a model's accuracy hangs on the form of the prompt: 200 items, each asked in 26 forms.

A form is the return format asked for, a tag around the calls, how functions are written down, and the prompt's own
layout and wording; its name is the official one, `ret_fmt=…&tool_call_tag=…&func_doc_fmt=…&prompt_fmt=…&style=…`.
Source: `bfcl_eval/utils.py` and `eval_runner.py` (`format_sensitivity_runner`), gorilla at 6ea5797.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.categories import category
from tunesmith.evaluate.bfcl.checking import Rules
from tunesmith.evaluate.bfcl.dataset import Entry, load
from tunesmith.evaluate.bfcl.decoding import Notation, decode_text
from tunesmith.evaluate.bfcl.python_calls import Undecodable
from tunesmith.evaluate.bfcl.scoring import judge_calls
from tunesmith.evaluate.bfcl.verdicts import Verdict

Documents = Literal["python", "xml", "json"]
Layout = Literal["plaintext", "markdown"]
Style = Literal["classic", "experimental"]


@dataclass(frozen=True)
class Form:
    """One way to ask."""

    notation: Notation = "python"
    tagged: bool = False
    documents: Documents = "json"
    layout: Layout = "plaintext"
    style: Style = "classic"

    @property
    def name(self) -> str:
        """The official name."""
        return (
            f"ret_fmt={self.notation}&tool_call_tag={self.tagged}&func_doc_fmt={self.documents}"
            f"&prompt_fmt={self.layout}&style={self.style}"
        )


_NAME = re.compile(
    r"ret_fmt=(python|json|verbose_xml|concise_xml)&tool_call_tag=(True|False)&func_doc_fmt=(python|xml|json)"
    r"&prompt_fmt=(plaintext|markdown)&style=(classic|experimental)"
)
DEFAULT_FORM = Form()
_NOTATIONS: tuple[Notation, ...] = ("python", "json", "verbose_xml", "concise_xml")
_DOCUMENTS: tuple[Documents, ...] = ("python", "xml", "json")
FORMS: tuple[Form, ...] = (
    *(Form(notation, tagged, docs) for notation in _NOTATIONS for tagged in (True, False) for docs in _DOCUMENTS),
    Form(layout="markdown"),
    Form(style="experimental"),
)


def form_of(name: str) -> Form:
    """Return the form of a name.

    Raises:
        ValueError: there is none of that name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"no form of a prompt is called {name!r}")
    notation, tagged, documents, layout, style = match.groups()
    return Form(
        cast(Notation, notation), tagged == "True", cast(Documents, documents), cast(Layout, layout), cast(Style, style)
    )


def load_entries(directory: Path) -> dict[str, Entry]:
    """Return all 5,200 items by their official ids, `format_sensitivity_NUMBER:FORM:ID`, in the official order.

    Raises:
        DataError: the list of ids or a category it names is missing or broken.
    """
    found: dict[str, Entry] = {}
    for name, identifiers in _chosen(directory).items():
        wanted = set(identifiers)
        for entry in load(category(name), directory).entries:
            if entry.id in wanted:
                for form in FORMS:
                    identifier = f"format_sensitivity_{len(found)}:{form.name}:{entry.id}"
                    found[identifier] = Entry(identifier, entry.turns, entry.functions, entry.ground_truth, entry.raw)
    return found


def version(directory: Path) -> str:
    """Return the version of the data that `load_entries` reads."""
    return _ids_file(directory).name.removesuffix("_format_sensitivity.json")


def _ids_file(directory: Path) -> Path:
    candidates = sorted(directory.glob("BFCL_v*_format_sensitivity.json"))
    if not candidates:
        raise DataError("the directory holds no BFCL_v*_format_sensitivity.json", where=str(directory))
    return candidates[-1]


def _chosen(directory: Path) -> dict[str, list[str]]:
    path = _ids_file(directory)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(document, dict) or not all(isinstance(ids, list) for ids in document.values()):
        raise DataError("expected lists of ids by category", where=str(path))
    return document


def judge(identifier: str, entry: Entry, response: Any) -> Verdict:
    """Return the verdict on an answer to an item whose id names the form it was asked in."""
    _, name, of = identifier.split(":")
    form = form_of(name)
    try:
        calls = decode_text(response, form.notation, tagged=form.tagged)
    except Undecodable as error:
        return Verdict(False, "ast_decoder:decoder_failed", str(error))
    # All chosen items are Python's; the checker is chosen by the id, as the official runner does.
    return judge_calls(of, entry, calls, Rules())


def spread(verdicts: Mapping[str, bool]) -> dict[str, Any]:
    """Return accuracy by form, and the official measures of how far they lie apart, in percentage points.

    `verdicts` says which answers are right, by their items' ids.
    `accuracy_variance` and `accuracy_std` are those of a sample; with one form they are 0, as `accuracy_max_delta` is.
    """
    by_form: dict[str, list[bool]] = {}
    for identifier, valid in verdicts.items():
        by_form.setdefault(identifier.split(":")[1], []).append(valid)
    accuracies = {name: sum(valid) / len(valid) for name, valid in by_form.items()}
    values, several = list(accuracies.values()), len(accuracies) > 1
    return {
        "accuracy_max_delta": round((max(values) - min(values)) * 100, 2) if several else 0.0,
        "accuracy_variance": round(statistics.variance(values) * 100**2, 2) if several else 0.0,
        "accuracy_std": round(statistics.stdev(values) * 100, 2) if several else 0.0,
        "accuracy_by_form": {
            name: {"accuracy": accuracies[name], "correct_count": sum(valid), "total_count": len(valid)}
            for name, valid in by_form.items()
        },
    }
