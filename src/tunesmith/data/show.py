"""Rows as the model will see them, token by token: `tunesmith data show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from tunesmith.data.mixing import content_digest, is_held_out
from tunesmith.data.tokenising import Encoder
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Recipe
from tunesmith.rows.reading import Example, read_examples
from tunesmith.tokens.chat import MarkedText, TemplateProblem, segment_of
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from rich.text import Text

Kind = Literal["trained", "context", "cut"]

# Neighbouring tokens take turns in brightness, so that their borders show.
_STYLES: dict[Kind, tuple[str, str]] = {
    "trained": ("black on green", "black on bright_green"),
    "context": ("default", "bright_black"),
    "cut": ("strike red", "strike bright_red"),
}
_MARKS: dict[Kind, tuple[str, str]] = {"trained": ("⟦", "⟧"), "context": ("", ""), "cut": ("⟪", "⟫")}
_VISIBLE = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}


def show(
    recipe: Recipe, num_rows: int, split: Literal["train", "validation"] = "train", *, coloured: bool = True
) -> Iterator[Text | str]:
    """Yield a legend and the first rows of a split: per row a line of numbers and its tokens.

    Args:
        coloured: yield `rich.text.Text`; else plain text with ⟦…⟧ around what has a loss and ⟪…⟫ around what is cut.

    Raises:
        DataError: a source, a template or the tokenizer cannot be used, or the split has no rows.
    """
    from tunesmith.model.locate import locate

    tokenizer = load_tokenizer(locate(recipe.model, recipe.output_dir))
    encoder = Encoder(tokenizer, template_for(tokenizer, recipe.data.chat_template), recipe)
    yield _line([("trained", "trained"), ("context", "  context  "), ("cut", "cut")], coloured)
    shown = 0
    for example in _rows_of(recipe, split):
        if shown == num_rows:
            return
        shown += 1
        yield from _row(encoder, example, coloured)
    if not shown and num_rows:
        raise DataError(f"the {split} split has no rows", where="data", do="see data.validation_fraction")


def _rows_of(recipe: Recipe, split: str) -> Iterator[Example]:
    data = recipe.data
    sources = [(source, True) for source in data.validation] if split == "validation" else []
    sources += [(source, False) for source in data.train]
    for source, all_held_out in sources:
        for example in read_examples(source)[1]:
            if not isinstance(example, Example):
                continue
            held_out = all_held_out or is_held_out(
                content_digest(example.content), recipe.seed, data.validation_fraction
            )
            if held_out == (split == "validation"):
                yield example


def _row(encoder: Encoder, example: Example, coloured: bool) -> Iterator[Text | str]:
    where = f"{example.file}:{example.line}"
    try:
        texts = encoder.marked(example.content)
    except TemplateProblem as problem:
        yield f"{where}  {problem}"
        return
    titles = [""] if len(texts) == 1 else ["  chosen", "  rejected"]
    for title, marked in zip(titles, texts, strict=True):
        tokens = _tokens(encoder, marked)
        counts = {kind: sum(k == kind for k, _ in tokens) for kind in _STYLES}
        numbers = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count or kind != "cut")
        yield f"{where}{title}  {len(tokens)} tokens: {numbers}"
        yield _line(tokens, coloured)


def _tokens(encoder: Encoder, marked: MarkedText) -> list[tuple[Kind, str]]:
    """Return each token's kind and the characters it stands for."""
    encoding = encoder.tokenizer.encoding(marked.text)
    _, trained = segment_of(encoding, marked.spans)
    limit = encoder.recipe.data.max_length
    tokens: list[tuple[Kind, str]] = []
    behind = 0
    for position, (flag, (_, end)) in enumerate(zip(trained, encoding.offsets, strict=True)):
        kind: Kind = "cut" if position >= limit else "trained" if flag else "context"
        tokens.append(
            (kind, marked.text[behind : max(behind, end)])
        )  # of a character's several tokens the first has it
        behind = max(behind, end)
    return tokens


def _line(tokens: list[tuple[Kind, str]], coloured: bool) -> Text | str:
    if not coloured:
        return _marked_line(tokens)
    from rich.text import Text

    line = Text()
    for number, (kind, text) in enumerate(tokens):
        line.append(_visible(text), style=_STYLES[kind][number % 2])
    return line


def _marked_line(tokens: list[tuple[Kind, str]]) -> str:
    pieces: list[str] = []
    previous: Kind = "context"
    for kind, text in tokens:
        if kind != previous:
            pieces += [_MARKS[previous][1], _MARKS[kind][0]]
            previous = kind
        pieces.append(_visible(text))
    return "".join([*pieces, _MARKS[previous][1]])


def _visible(text: str) -> str:
    for character, sign in _VISIBLE.items():
        text = text.replace(character, sign)
    return text
