"""Endless generated conversations for pre-training the quickstart's base model (standard library only).

They teach parts of a skill, in words: repeating, looking a value up, writing JSON from facts, reading tool declarations
and talking about them. No conversation contains a tool call, and values come from the `PRETRAINING` world only, which
neither data file draws from.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from invented import PRETRAINING, decimal, integer, name, word, world_of

_ENGLISH = """
able account add address age air album amount animal answer apple area arm art ask baby back bag ball band base beach
bed bell bike bill bird block boat body book bottle box boy bread break brick bring brother build bus business button
buy call camera camp capital card care carry case castle cat catch cause chair chance change check cheese child choose
church circle city class clean clear clock close cloth cloud coat code coffee cold collect colour comment company
compare computer cook copy corner count country course cover cow create cross cup current cut dance data date daughter
day deal degree deliver design desk detail device dinner direction discuss display doctor document dog door draw dream
dress drink drive dry duck dust ear earth east edge egg email end energy engine enter event exchange exercise eye face
fact family farm father field file fill film find fire fish fix flag flat flight floor flower fly food foot force
forest form frame friend front fruit game garden gate gift girl give glass goal gold grade grain grass green ground
group grow guess guide hair half hall hand hat head health heart heat help hill history hold holiday home horse
hospital hotel hour house ice idea image inform island item job join journey judge juice jump kind king kitchen knife
label lake land language laugh law lead leaf learn leg lesson level library lift light line list listen local lock log
loss love lunch machine mail map mark market match meal measure meat meet member message metal milk minute mirror
money month moon morning mother mountain mouth move movie music nation nature neck need network night noise north nose
note number nurse object ocean offer office oil open orange order owner page pain paint pair paper parent park part
party pass path pay peace pen pencil people person phone photo phrase pick picture piece place plan plane plant plate
play pocket poem point police pool post potato pound power present press price print problem process produce product
profit program project protect pull purpose push question radio rain range rate read record red region remove rent
repair repeat reply report request rescue rest result return rice ring road rock roof room rope round route rule run
salt sand save scale school science score screen sea search season seat second secret seed sell send sentence service
set shape share sheet shirt shoe shop show side sign silver sing sister size skill skin sky sleep smell snow soap soil
son song sort sound soup south space speak speed spoon sport spring square star start state station stay step stick
stone stop store storm story street study subject sugar summer sun supply support surface swim switch system table
tail talk task taste tax tea teach team test text theory thing ticket time title tool tooth topic total touch tour
tower town track trade train transfer travel tree trip truck type uncle unit update value view village visit voice
wait walk wall war wash watch water wave weather week weight west wheel wind window wine winter wire wood word work
world write year young zone translate transport destination restaurant information conversion delivery ingredient
medical national personal reservation standard structure surprise temperature university vegetable
"""
ENGLISH = _ENGLISH.split()

_OPENINGS = (
    "Please {}",
    "Can you {}",
    "I want to {}",
    "I need to {}",
    "Kindly {}",
    "Let us {}",
    "You should {}",
    "{}",
    "I have to {}",
    "Would you {}",
)
_TEXT_SLOTS = (
    "{p} {v}",
    "with {p} {v}",
    "for {p} {v}",
    "the {p} is {v}",
    "{p} is {v}",
    "{p}: {v}",
    "{p} = {v}",
    "use {v} as the {p}",
    "take {v} as {p}",
)
_NUM_SLOTS_VALUE_FIRST = 2  # the last ones
_NUMBER_SLOTS = ("{v} {p}", "with {v} {p}", "for {v} {p}", *_TEXT_SLOTS)
_JOINTS = (", ", " and ", ", and ", "; ")
_DESCRIPTIONS = (
    "{} a {} for a {}",
    "{} a {} of a {}",
    "{} the {} with a {}",
    "{} a {} in a {}",
    "{} the {} by {}",
    "{} {} to a {}",
    "{} a {} at a {}",
)
_REQUESTS = (
    "{v} a {n}",
    "{v} the {n}",
    "{v} my {n}",
    "{v} {n}",
    "{v} some {n}",
    "{v} a {m} {n}",
    "{v} a {n}",
    "{v} the {n}",
    "{v} a {n} for a {m}",
)
_GREETINGS = (
    ("Hello", "Hello! How can I help you?"),
    ("Thank you", "You are welcome."),
    ("Who are you?", "I am a small model that likes words."),
)
_NO_TOOL_ANSWER = "No tool fits that."


@dataclass(frozen=True)
class Lesson:
    """How the conversations of one part of the pre-training are mixed; fractions are between 0 and 1.

    A content word is English, or spliced from the beginning and the end of two English words, or else invented.
    """

    english_fraction: float
    spliced_fraction: float
    num_tool_turns: range
    tool_turn_weights: tuple[float, ...]
    no_tool_fraction: float
    tool_conversation_fraction: float
    num_parameters: tuple[int, ...] = (1, 2, 2, 2, 3)
    value_comes_last: bool = False  # "station Juspen", never "Juspen as station" (numbers may come first)


FIRST_LESSON = Lesson(0.5, 0.0, range(1, 5), (8, 4, 2, 1, 1, 0.4), 0.1, 0.75)
SECOND_LESSON = Lesson(0.15, 0.45, range(3, 7), (10, 4, 2, 1, 0.5, 0.3), 0.15, 0.8)
THIRD_LESSON = Lesson(0.25, 0.45, range(3, 7), (12, 3, 1, 0.5, 0.3, 0.2), 0.12, 0.9)
LAST_LESSON = Lesson(0.65, 0.25, range(5, 9), (6, 6, 0.5, 0.1, 0.1, 0.1), 0.1, 0.95, (1, 1, 2, 2), True)


@dataclass(frozen=True)
class Conversation:
    """Tool declarations, if any, and (question, answer) turns."""

    tools: list[dict[str, Any]]
    turns: list[tuple[str, str]]

    def segments(self) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of the chat as the chat template renders it, each with whether the assistant says it."""
        if self.tools:
            lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.tools)
            yield f"<|im_start|>system\n<tools>\n{lines}\n</tools><|im_end|>\n", False
        for question, answer in self.turns:
            yield f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False
            yield f"{answer}<|im_end|>", True
            yield "\n", False


@dataclass(frozen=True)
class _Action:
    """An invented tool: its declaration, and how a person asks for it."""

    declaration: dict[str, Any]
    request: str
    kinds: dict[str, str]


def _spliced_word(random: Random) -> str:
    while True:
        letters = random.choice(ENGLISH)[: random.randrange(1, 5)] + random.choice(ENGLISH)[-random.randrange(2, 6) :]
        if 4 <= len(letters) <= 10 and world_of(letters) == PRETRAINING:
            return letters


def _content_word(random: Random, lesson: Lesson) -> str:
    draw = random.random()
    if draw < lesson.english_fraction:
        return random.choice(ENGLISH)
    return (
        _spliced_word(random) if draw < lesson.english_fraction + lesson.spliced_fraction else word(random, PRETRAINING)
    )


def _kind(random: Random) -> str:
    return random.choices(("string", "integer", "number"), weights=(6, 3, 1))[0]


def _value(random: Random, kind: str) -> str | int | float:
    if kind == "integer":
        return integer(random, PRETRAINING)
    return name(random, PRETRAINING) if kind == "string" else decimal(random, PRETRAINING)


def _thing(random: Random, lesson: Lesson) -> str:
    return _content_word(random, lesson) if random.random() < 0.5 else str(_value(random, _kind(random)))


def _facts(random: Random, lesson: Lesson, num_facts: int) -> dict[str, Any]:
    return {_content_word(random, lesson): _value(random, _kind(random)) for _ in range(num_facts)}


def _mention(random: Random, lesson: Lesson, facts: dict[str, Any], shuffle: bool) -> str:
    keys = random.sample(list(facts), len(facts)) if shuffle else list(facts)
    last = -_NUM_SLOTS_VALUE_FIRST if lesson.value_comes_last else None
    phrases = (
        random.choice((_TEXT_SLOTS if isinstance(facts[key], str) else _NUMBER_SLOTS)[:last]).format(
            p=key, v=facts[key]
        )
        for key in keys
    )
    return random.choice(_JOINTS).join(phrases)


def _say(facts: dict[str, Any]) -> str:
    return " and ".join(f"{key} {value}" for key, value in facts.items())


def repeat_turn(random: Random, lesson: Lesson) -> tuple[str, str]:
    """Return a request to repeat words, numbers or tagged text, and the repetition."""
    text = " ".join(_thing(random, lesson) for _ in range(random.randrange(1, 9)))
    if random.random() < 0.3:
        tag = f"{_content_word(random, lesson)}_{_content_word(random, lesson)}"
        inner = json.dumps(_facts(random, lesson, random.choice((1, 2)))) if random.random() < 0.5 else text
        tagged = f"<{tag}>\n{inner}\n</{tag}>"
        return (
            (f"Put this in the tag {tag}: {inner}", tagged) if random.random() < 0.7 else (f"Repeat: {tagged}", tagged)
        )
    return f"{random.choice(('Repeat', 'Say', 'Copy', 'Write'))}: {text}", text


def fact_turns(random: Random, lesson: Lesson) -> list[tuple[str, str]]:
    """Return facts followed by questions about them: as JSON, one by one, in words."""
    facts = _facts(random, lesson, random.randrange(1, 5))
    mention = _mention(random, lesson, facts, shuffle=False)
    turns = [random.choice(((f"Write as JSON: {mention}", json.dumps(facts)), (f"List: {mention}", _say(facts))))]
    for key in random.sample(list(facts), min(len(facts), 2)):
        turns.append((f"Which {key}?", str(facts[key])))
    if random.random() < 0.3:
        key, value = random.choice(list(facts.items()))
        turns.append((f"What is {value}?", key))
    return turns


def _action(random: Random, lesson: Lesson, verb: str, noun: str) -> _Action:
    other = _content_word(random, lesson)
    pattern = random.choice(_DESCRIPTIONS)
    kinds = {_content_word(random, lesson): _kind(random) for _ in range(random.choice(lesson.num_parameters))}
    properties = {key: {"type": kind} for key, kind in kinds.items()}
    function = {
        "name": f"{verb}_{noun}",
        "description": pattern.format(verb.capitalize(), noun, other),
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }
    request = random.choice(_REQUESTS).format(v=verb, n=noun, m=other)
    return _Action({"type": "function", "function": function}, request, kinds)


def _ask(random: Random, lesson: Lesson, action: _Action, arguments: dict[str, Any]) -> str:
    opening = random.choice(_OPENINGS).format(action.request)
    joint = random.choice((", ", ": ", " "))
    return opening + joint + _mention(random, lesson, arguments, shuffle=True) + random.choice((".", "", "?"))


def _tool_turn(random: Random, lesson: Lesson, action: _Action, offered: bool) -> tuple[str, str]:
    function = action.declaration["function"]
    arguments = {key: _value(random, kind) for key, kind in action.kinds.items()}
    request = _ask(random, lesson, action, arguments)
    if not offered:
        return request, _NO_TOOL_ANSWER
    properties = function["parameters"]["properties"]
    parameters = " and ".join(f"{key} ({schema['type']})" for key, schema in properties.items())
    questions = (
        (request, f"That needs {function['name']} with {_say(arguments)}."),
        (f"Write as JSON: {request}", json.dumps(arguments)),
        (f"Which tool can {action.request}?", function["name"]),
        (f"What are the parameters of {function['name']}?", parameters),
        (f"What does {function['name']} do?", function["description"]),
        (f"Declare {function['name']}", json.dumps(function)),
    )
    return random.choices(questions, weights=lesson.tool_turn_weights)[0]


def tool_conversation(random: Random, lesson: Lesson) -> Conversation:
    """Return two or three invented tools on offer, and questions about them; tools may share a verb or a noun."""
    verbs = [_content_word(random, lesson) for _ in range(4)]
    nouns = [_content_word(random, lesson) for _ in range(4)]
    if random.random() < 0.2:
        verbs[1] = verbs[0]
    elif random.random() < 0.2:
        nouns[1] = nouns[0]
    *actions, stranger = [_action(random, lesson, verb, noun) for verb, noun in zip(verbs, nouns, strict=True)]
    actions = random.sample(actions, random.choice((2, 3)))
    turns = []
    for _ in range(random.choice(lesson.num_tool_turns)):
        offered = random.random() > lesson.no_tool_fraction
        turns.append(_tool_turn(random, lesson, random.choice(actions) if offered else stranger, offered))
    return Conversation([action.declaration for action in actions], turns)


def plain_conversation(random: Random, lesson: Lesson) -> Conversation:
    """Return a conversation without tools: repeating, facts, or a greeting."""
    if random.random() < 0.01:
        return Conversation([], [random.choice(_GREETINGS)])
    if random.random() < 0.5:
        return Conversation([], [repeat_turn(random, lesson) for _ in range(random.choice((1, 2, 3)))])
    return Conversation([], fact_turns(random, lesson))
