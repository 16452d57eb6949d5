"""Training: configuration, step, loop, checkpoints, evaluation."""

from egattn.run.signals import Preempted as Preempted
from egattn.train.config import PenaltyConfig as PenaltyConfig
from egattn.train.config import TrainConfig as TrainConfig
from egattn.train.cross_entropy import cross_entropy as cross_entropy
from egattn.train.evaluate import EvaluateConfig as EvaluateConfig
from egattn.train.evaluate import evaluate as evaluate
from egattn.train.loop import train as train
from egattn.train.step import TrainState as TrainState
