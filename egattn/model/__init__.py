"""Flax Linen modules: the decoder and its parts, each usable alone."""

from egattn.model.attention import EntropyAttention as EntropyAttention
from egattn.model.config import PRESETS as PRESETS
from egattn.model.config import DecoderConfig as DecoderConfig
from egattn.model.decoder import Block as Block
from egattn.model.decoder import Decoder as Decoder
from egattn.model.decoder import DecoderFeatures as DecoderFeatures
from egattn.model.decoder import DecoderOutput as DecoderOutput
from egattn.model.feed_forward import FeedForward as FeedForward
from egattn.model.linear import Linear as Linear
