"""What people call benchmarks, and what lm-evaluation-harness calls them; which of them run the model's own programs.

Known here, so that `check` can say it without asking the harness. A name the harness itself has is never translated.
"""

from __future__ import annotations

import re

# By the name in letters and digits only, in lower case. Where a benchmark comes in several forms, the one that model
# cards and leaderboards mean.
_AS_PEOPLE_SAY = {
    "mmlu": ("mmlu",),
    "gsm8k": ("gsm8k",),
    "arc": ("arc_easy", "arc_challenge"),
    "arce": ("arc_easy",),
    "arceasy": ("arc_easy",),
    "arcc": ("arc_challenge",),
    "arcchallenge": ("arc_challenge",),
    "hellaswag": ("hellaswag",),
    "winogrande": ("winogrande",),
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "truthfulqamc1": ("truthfulqa_mc1",),
    "truthfulqamc2": ("truthfulqa_mc2",),
    "bbh": ("bbh",),
    "bigbenchhard": ("bbh",),
    "gpqa": ("gpqa_main_zeroshot",),
    "gpqamain": ("gpqa_main_zeroshot",),
    "gpqadiamond": ("gpqa_diamond_zeroshot",),
    "humaneval": ("humaneval",),
    "mbpp": ("mbpp",),
}
_WRITES_PROGRAMS = re.compile(r"(humaneval|mbpp)", re.IGNORECASE)


def translated(word: str) -> tuple[str, ...]:
    """Return the harness's names for what people call a benchmark; none when it is not one of these."""
    return _AS_PEOPLE_SAY.get(re.sub(r"[^a-z0-9]", "", word.lower()), ())


def names_for_people() -> list[str]:
    """Return the names that `translated` knows, in its own spelling."""
    return list(_AS_PEOPLE_SAY)


def is_known_to_run_code(word: str) -> bool:
    """Return whether a task is one of those that run the model's programs, by its name alone."""
    return _WRITES_PROGRAMS.match(word) is not None
