"""Tests execute the package's annotations, as pyproject.toml says, in any module."""

from collections.abc import Callable
from typing import Any

import pytest
from jaxtyping import TypeCheckError

from egattn.inspect.architecture import spans
from egattn.run.lines import read_lines
from egattn.train.evaluate import Evaluator


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        pytest.param(read_lines, ["metrics.jsonl"], id="a function"),
        pytest.param(spans, [{"num_layers": 2}], id="in another module"),
        pytest.param(Evaluator, ["runs/demo", None, None], id="a constructor"),
    ],
)
def test_an_argument_of_another_type_is_refused(call: Callable, arguments: list[Any]):
    with pytest.raises(TypeCheckError):
        call(*arguments)
