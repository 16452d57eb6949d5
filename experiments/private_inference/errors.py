"""What ends a run early: each is one line for the user and an exit status."""

import re


class Failure(Exception):
    """A run that started and could not finish, or whose outputs are wrong."""

    status = 1


class UsageError(Failure):
    """A command that cannot run: a bad option, a bad export, a port in use."""

    status = 2


def native_message(error: BaseException) -> str:
    """The sentence of an SPU exception, without its source location and stack trace."""
    text = str(error).split("stacktrace:")[0].replace("what:", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return re.sub(r"^\[\S+:\d+\]\s*", "", first)
