"""The registered claims: paired differences and verdicts, and the text of the long runs."""

import math

import numpy as np
import pytest

from egattn import cli
from egattn.data import load_manifest, load_tokenizer
from egattn.data.formats import Document
from experiments.paper import more_text
from experiments.paper.claims import CLAIMS, SETTINGS, Claim, claims_table, standard_error, verdict
from experiments.paper.studies import every_training
from experiments.paper.studies.verdicts import NETS, training

# Student's t with 2 and 1 degrees of freedom, 5 % beyond, from a printed table.
T_THREE, T_TWO = 2.920, 6.314


@pytest.mark.parametrize(
    ("differences", "limit", "expected"),
    [
        ([-3.0], 0.0, "open"),
        # Mean -3, standard error 1 / sqrt 3: upper bound -3 + 1.69.
        ([-2.0, -3.0, -4.0], 0.0, "holds"),
        ([-2.0, -3.0, -4.0], -1.2, "holds"),
        ([-2.0, -3.0, -4.0], -1.4, "open"),
        # The mean is bounded away, but one seed is not.
        ([0.1, -1.2, -1.2, -1.2, -1.2], 0.0, "open"),
        # Two seeds agree, but t is large: -3 + 6.3 * 0.5.
        ([-2.5, -3.5], 0.0, "open"),
        ([-2.6, -3.4], 0.0, "holds"),
        # No seed is below; a gain of less than a percent.
        ([0.1, 5.0], 0.0, "does not hold"),
        ([-0.1, 0.1, 0.0], 0.0, "does not hold"),
        ([-0.6, 0.4, 0.2], 0.0, "does not hold"),
        ([-1.0, 0.4, 0.2], 0.0, "open"),
    ],
)
def test_verdict(differences, limit, expected):
    reach = {2: T_TWO, 3: T_THREE}.get(len(differences), 2.132)
    mean = np.mean(differences)
    # The cases are what their comments say: no bound lies on the limit.
    if len(differences) > 1:
        half = reach * np.std(differences, ddof=1) / math.sqrt(len(differences))
        assert (max(differences) < limit and mean + half < limit) == (expected == "holds")
    assert verdict(differences, limit) == expected


def test_standard_error():
    assert math.isclose(standard_error([1.0, 3.0]), 1.0)


def line(net: str, seed: int, perplexity: float | None) -> dict:
    value = {} if perplexity is None else {"perplexity": perplexity}
    return {tuple(training(net, seed=seed, tokens=100_000_000).words()): value}


def test_the_table_pairs_seeds():
    lines = line("sm_ln_g", 0, 10.0) | line("sm_ln_g", 1, 20.0) | line("sm_ln_g", 2, 30.0)
    # Seed 2 has no partner, one diverged.
    lines |= line("sm_ln_r", 0, 10.1) | line("sm_ln_r", 1, 20.6)
    lines |= line("sm_scfuffn", 0, 12.0) | line("sm_t_scfuffn", 0, None)
    header, _, row = claims_table(lines).splitlines()
    assert header == (
        "| claim | net | against | tokens, rate | Δ % by seed | mean ± standard error | verdict | "
        "paper |"
    )
    assert row == (
        "| ReLU costs less than 5 % against GELU | `sm_ln_r` | `sm_ln_g` | 100 M, 1e-3 | +1.0 +3.0 "
        "| +2.0 ± 1.0 | open | +2.6 |"
    )
    assert claims_table({}) == "No run yet.\n"


def test_what_is_claimed_is_run():
    names = {run.name for run in every_training()}
    for claim in CLAIMS:
        assert isinstance(claim, Claim)
        assert {claim.net, claim.against} <= NETS.keys()
    _, tokens, seeds, *_ = SETTINGS[0]
    for net in NETS:
        assert {training(net, seed=seed, tokens=tokens).name for seed in seeds} <= names


@pytest.fixture
def more(tmp_path, monkeypatch):
    """Root with data of 60 documents, and with more text: 40 files, two of which are known."""
    documents = [f"def f_{i}(x):\n    return x + {i * 7}\n".encode() * 20 for i in range(98)]
    for number, document in enumerate(documents[:60]):
        path = tmp_path / "installed" / f"{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(document)
    for number, document in enumerate(documents[60:] + documents[:2]):
        path = tmp_path / "more" / f"{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(document)
    first = tmp_path / "root" / "data" / "128"
    words = (
        f"--source {tmp_path}/installed --vocab-size 300 --validation-fraction 0.02 --packing paper"
    )
    found = [Document(document, "") for document in documents[:60]]
    monkeypatch.setattr(more_text, "open_source", lambda *_: found)
    cli.prepare([str(first), *words.split()])
    return tmp_path, documents


def test_more_text(more):
    root, documents = more
    first = load_manifest(root / "root" / "data" / "128")
    made = more_text.main(more_text.Config(root / "more", root / "root"))
    out = root / "root" / "data" / "more-128"
    assert load_manifest(out) == made
    assert made.splits["validation"] == first.splits["validation"]
    assert made.tokenizer_sha256 == first.tokenizer_sha256
    assert made.duplicates == 2
    assert first.splits["train"].documents < made.splits["train"].documents <= 98
    lengths = [
        len(load_tokenizer(out / "tokenizer.json").encode(d.decode()).ids) for d in documents
    ]
    # All tokens, with an end token each, but for those of validation documents.
    assert made.splits["train"].tokens <= sum(lengths) + 98 - first.splits["validation"].tokens
    with pytest.raises(ValueError, match="is there already"):
        more_text.main(more_text.Config(root / "more", root / "root"))


def test_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a directory of Python files"):
        more_text.main(more_text.Config(tmp_path / "no", tmp_path))
