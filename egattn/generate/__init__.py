"""Generation: prompts continued by a decoder, with the entropy of what it reads and chooses."""

from egattn.generate.config import BeamSearch, JointNucleus, Sampling
from egattn.generate.generate import Generated, generate
from egattn.generate.network import prepare
from egattn.generate.vote import answer_labels, vote

__all__ = [
    "BeamSearch",
    "Generated",
    "JointNucleus",
    "Sampling",
    "answer_labels",
    "generate",
    "prepare",
    "vote",
]
