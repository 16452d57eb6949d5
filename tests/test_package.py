"""What a user meets first: the import, the README's examples, the names."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import egattn

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_import_loads_nothing_that_the_functions_do_not_need():
    heavy = [
        "matplotlib",
        "tokenizers",
        "orbax",
        "grain",
        "tensorboardX",
        "tyro",
        "rich",
        "optax",
        "flax",
    ]
    code = f"import sys, egattn; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_modules_load_on_first_use():
    assert egattn.DecoderConfig.preset("sm").num_layers == 12
    with pytest.raises(AttributeError, match="no attribute 'Decodr'"):
        egattn.Decodr  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue] - the access is the test


def test_readme_has_examples():
    assert len(EXAMPLES) == 2


def test_first_example_prints_head_entropies(capsys):
    exec(EXAMPLES[0], {})
    numbers = re.findall(r"\d\.\d+", capsys.readouterr().out)
    assert len(numbers) == 2 * 4
    # Between a hard choice and a uniform one over at most 64 keys.
    assert all(0 < float(x) < np.log(64) for x in numbers)


def test_second_example_gives_gradients():
    namespace = {}
    exec(EXAMPLES[1], namespace)
    shapes = [x.shape for x in namespace["gradients"]]
    assert shapes == [(2, 128, 4, 32)] * 3 + [(4, 128), (4,)]
    assert all(float(jax.numpy.linalg.norm(x)) > 0 for x in namespace["gradients"])
