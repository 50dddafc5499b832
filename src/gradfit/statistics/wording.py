"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 8


def listed(names: Sequence[str]) -> str:
    """Give "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def some(names: Sequence[str]) -> str:
    """The same for a few of many: "a, b, c, d, e, f, g, h and 3 more"."""
    more = len(names) - MOST_NAMED
    return listed(names) if more <= 0 else f"{', '.join(names[:MOST_NAMED])} and {more} more"
