"""Error messages that name the nearest valid choice."""

import difflib
from collections.abc import Iterable


def unknown(what: str, got: object, valid: Iterable[str]) -> str:
    """Returns "unknown WHAT 'GOT'; did you mean 'NEAREST'?" and the valid names if they are few."""
    names = list(valid)
    nearest = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    choices = f" (valid: {', '.join(names)})" if len(names) <= 16 or not nearest else ""
    return f"unknown {what} {got!r}{hint}{choices}"
