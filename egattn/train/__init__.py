"""Training: configuration, step, loop, checkpoints, evaluation."""

from egattn.train.config import PenaltyConfig as PenaltyConfig
from egattn.train.config import TrainConfig as TrainConfig
from egattn.train.cross_entropy import cross_entropy as cross_entropy
from egattn.train.evaluate import EvaluateConfig as EvaluateConfig
from egattn.train.evaluate import evaluate as evaluate
from egattn.train.step import TrainState as TrainState
from egattn.train.task import language_model as language_model
from egattn.train.task import train as train
