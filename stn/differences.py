"""In which settings runs differ, and how a table and a plot name them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stn.options import shown
from stn.runs import brief

ABSENT = "–"  # of a setting that a run does not have
CLASS = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which some settings differ, without those whose value is fixed by the class of their part."""
    values = {
        key: [str(one.get(key)) for one in settings] for key in dict.fromkeys(key for one in settings for key in one)
    }
    keys = [key for key, found in values.items() if len(set(found)) > 1]

    def follows(key: str, part: str) -> bool:
        pairs = set(zip(values[part], values[key], strict=True))
        return key.startswith(f"{part}.") and len(pairs) == len(set(values[part]))

    return [key for key in keys if not any(follows(key, part) for part in keys)]


def shown_values(values: Sequence[Any]) -> list[str]:
    """The values of a key as a table shows them: of a class its name. Other values are shown otherwise."""
    texts = [ABSENT if value is None else brief(shown(value).replace(", ", ","), 60) for value in values]
    names = [text.rpartition(".")[2] if re.fullmatch(CLASS, text) else text for text in texts]
    for found in (names, texts):
        if len(set(found)) == len({str(value) for value in values}):
            return found
    return [str(value) for value in values]


def telling_keys(keys: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    """The fewest keys, or nearly so, that tell all groups apart; two at most are all taken, and an arm alone if it can.

    groups: the values of the keys of each. Names of classes go first.
    """
    if "arm" in keys and len({group[keys.index("arm")] for group in groups}) == len(groups):
        return ["arm"]
    if len(keys) <= 2:
        return list(keys)
    chosen: list[int] = []

    def told(columns: Sequence[int]) -> int:
        return len({tuple(group[column] for column in columns) for group in groups})

    order = sorted(range(len(keys)), key=lambda column: not any(group[column].isidentifier() for group in groups))
    for column in order:
        if told([*chosen, column]) > told(chosen):
            chosen.append(column)
    return [keys[column] for column in sorted(chosen)]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest end of each dotted key that no other key has."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[key] = next((end for end in ends if sum(f".{one}".endswith(f".{end}") for one in keys) == 1), key)
    return found
