"""Greedy and beam search on a converted GPT-2 against transformers' `generate` in PyTorch."""

from typing import Any

import jax
import numpy as np
import pytest

from egattn.generate import BeamSearch, Sampling, generate
from egattn.model import Decoder
from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state
from tests.convert.test_torch import SMALL, random_gpt2
from tests.converted_runs import one_device, to_run

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is only an oracle")
transformers = pytest.importorskip("transformers", reason="transformers is only an oracle")

PAD, NEW = 3, 12
# So many that most continuations end before the last step, in different places.
ENDS = list(range(1, 400, 16))
PROMPTS = [
    np.random.default_rng(length).integers(1, 400, length).tolist() for length in (1, 5, 9, 9, 16)
]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """transformers' GPT-2, and the decoder converted from it."""
    model = random_gpt2(SMALL)
    directory = tmp_path_factory.mktemp("generate") / "gpt2"
    model.save_pretrained(directory)
    run = to_run(directory)
    config = TrainConfig.read(run)
    return model, Decoder(config.model), {"params": load_state(config, one_device()).params}


def expected(model, eos: list[int] | None, **options: Any):
    """Sequences and scores of transformers; prompts padded on the left, as it wants them."""
    width = max(map(len, PROMPTS))
    tokens = torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    settings = transformers.GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=eos,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    made = model.generate(tokens, attention_mask=mask, generation_config=settings)
    sequences = made.sequences[:, width:].numpy()
    return sequences.reshape(len(PROMPTS), -1, sequences.shape[-1]), made


@pytest.mark.parametrize("eos", [None, ENDS], ids=["to the length", "to an end"])
def test_greedy(networks, eos):
    model, decoder, variables = networks
    sequences, _ = expected(model, eos)
    made = generate(
        decoder, variables, PROMPTS, Sampling(0.0), max_new_tokens=NEW, eos=eos, pad=PAD
    )
    found = np.asarray(made.tokens[:, 0])
    np.testing.assert_array_equal(found[:, : sequences.shape[-1]], sequences[:, 0])
    assert (found[:, sequences.shape[-1] :] == PAD).all()


@pytest.mark.parametrize(
    ("search", "eos"),
    [
        (BeamSearch(4), None),
        (BeamSearch(4), ENDS),
        (BeamSearch(3, length_penalty=0.0), ENDS),
        (BeamSearch(3, length_penalty=2.0, early_stopping="never"), ENDS),
        (BeamSearch(4, length_penalty=0.5, early_stopping=True), ENDS),
        (BeamSearch(4, num_return_sequences=2), ENDS[:1]),
    ],
)
def test_beam_search(networks, search, eos):
    model, decoder, variables = networks
    sequences, about = expected(
        model,
        eos,
        num_beams=search.num_beams,
        num_return_sequences=search.returned,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
    )
    made = jax.device_get(
        generate(decoder, variables, PROMPTS, search, max_new_tokens=NEW, eos=eos, pad=PAD)
    )
    np.testing.assert_array_equal(made.tokens[..., : sequences.shape[-1]], sequences)
    assert (made.tokens[..., sequences.shape[-1] :] == PAD).all()
    scores = about.sequences_scores.numpy().reshape(len(PROMPTS), -1)
    np.testing.assert_allclose(made.details.score, scores, atol=1e-4)
