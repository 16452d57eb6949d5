"""Error messages that name the nearest valid choice."""

import difflib
from collections.abc import Iterable


def unknown(what: str, got: object, valid: Iterable[str]) -> str:
    """Returns "unknown WHAT 'GOT'; did you mean 'NEAREST'? (valid: ...)"."""
    names = list(valid)
    nearest = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {got!r}{hint} (valid: {', '.join(names)})"
