"""`egattn inspect --json` of each kind of directory, key for key as programs have come to read it.

`expected.jsonl` was written by the command as of commit c23ae51; a line per case. Keys that came
later are in it too.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from egattn.train.variables import read_variables
from tests.converted_runs import make_run
from tests.hugging_face import CONFIG, gpt2, write, write_tokenizer
from tests.inspect.inspecting import run_of
from tests.training import egattn

_EXPECTED = Path(__file__).with_name("expected.jsonl")
_CASES = {
    "a run": "{0}",
    "a run's shapes": "{0} --shapes --verify",
    "a run without data and checkpoint": "{1}",
    "data": "{2}",
    "a GPT-2": "{3}",
    "a GPT-2 that convert refuses": "{4}",
    "no weights": "{5}",
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("directories")
    data = _make_data(root)
    source = write(root / "gpt2", CONFIG, gpt2(CONFIG))
    write_tokenizer(source, 300)
    refused = write(root / "refused", CONFIG | {"activation_function": "silu"}, gpt2(CONFIG))
    empty = root / "empty"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps(CONFIG))
    return [_make_run(root, data), _make_start(root), data, source, refused, empty]


def _make_data(root: Path) -> Path:
    write_tokenizer(root, 300)
    texts = [f"{letter} " * 40 for letter in "abcdefgh"] + ["", "a " * 40, "b"]
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    options = "--packing paper --context-length 16 --validation-fraction 0.5 --tokenizer {2}"
    paths = root / "data", root / "texts.jsonl", root / "tokenizer.json"
    egattn(f"prepare {{0}} --source {{1}} {options}", *paths)
    return root / "data"


def _make_run(root: Path, data: Path) -> Path:
    """A run with everything that a run can have, two of its numbers not finite."""
    make_run(root / "run", "ereg_sm_t_scfuffn")
    _change(root / "run", data=str(data), data_sha256="0" * 64, steps=30)
    start = {"kind": "start", "parameters": 12, "tokens_per_step": 512}
    heads = {"head_entropy": [[None, 0.5], [2.0, 1.75]]}
    values = {"loss": 2.5, "perplexity": 12.25, "bits_per_byte": None, "windows": 7, **heads}
    lines = [start, {"kind": "validation", "step": 1, **values}]
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return root / "run"


def _make_start(root: Path) -> Path:
    """A run that was killed before its first checkpoint, and began with weights of another one."""
    make_run(root / "start", "sm")
    _change(root / "start", data=str(root / "nowhere"), init_from=str(root / "run"))
    (root / "start" / "checkpoints").rename(root / "lost")
    return root / "start"


def _change(run: Path, **fields: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | fields))


def _exact(checkpoint: Path) -> dict[str, Any]:
    """Variables whose squares any processor sums to the same bits; temperatures are all 1."""

    def value(path: Any, x: np.ndarray) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        values = np.arange(x.size).reshape(x.shape) % 7 / 8 * ("temperature" not in name)
        if "alpha" in name:
            values[0] = np.nan
        return values.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(value, read_variables(checkpoint))


def _comparable(values: dict[str, Any], root: Path) -> str:
    """Without what differs from machine to machine: paths, checksums, last digits, compression."""
    text = json.dumps(values).replace(str(root), "ROOT")
    text = re.sub('"[0-9a-f]{64}"', '"CHECKSUM"', text)
    values = json.loads(text, parse_float=lambda digits: round(float(digits), 9))
    if values["kind"] == "data":
        for part in (values, *values["splits"].values()):
            assert type(part["bytes"]) is int
            part["bytes"] = "BYTES"
    return json.dumps(values)


@pytest.mark.parametrize("case", _CASES)
def test_is_what_it_was(directories, capsys, monkeypatch, case):
    monkeypatch.setattr("egattn.inspect.run.read_variables", _exact)
    found = _comparable(run_of(capsys, _CASES[case], *directories), directories[0].parent)
    lines = map(json.loads, _EXPECTED.read_text().splitlines())
    expected = {line["case"]: line["json"] for line in lines}[case]
    assert json.loads(found) == expected
    # The order of keys, too.
    assert found == json.dumps(expected)
