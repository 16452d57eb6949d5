"""The page "Entropy production of your own process": its program finds the exact rate."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "own_process.md"
TEXT = PAGE.read_text(encoding="utf-8")
# c^2 (T_1 - T_2)^2 / (2 T_1 T_2).
EXACT = 0.5**2 * (1 - 5) ** 2 / (2 * 1 * 5)


def numbers(text: str) -> list[tuple[float, float]]:
    """Each line's value and what follows its plus-minus sign."""
    return [(float(a), float(b)) for a, b in re.findall(r"(-?\d\.\d+) ± (\d\.\d+)$", text, re.M)]


@pytest.mark.slow
def test_program_finds_the_exact_rate(capsys):
    program = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert program
    exec(compile(program[1], PAGE.name, "exec"), {})
    estimate, bound, identity, residual = numbers(capsys.readouterr().out)
    for value, error in (estimate, bound, identity):
        assert abs(value - EXACT) < 3 * error < 0.05
    assert bound[0] < EXACT + 2 * bound[1]
    assert abs(residual[0]) < 0.01
    assert residual[1] < 0.2


def test_page_shows_what_such_a_run_printed():
    printed = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert printed
    estimate, bound, identity, _ = numbers(printed[1])
    assert all(abs(value - EXACT) < 3 * error for value, error in (estimate, bound, identity))
