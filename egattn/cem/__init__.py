"""The cross-entropy method: optimisation and rare-event probabilities of any batched function."""

from egattn.cem.families import Exponential as Exponential
from egattn.cem.families import Family as Family
from egattn.cem.families import TruncatedNormal as TruncatedNormal
from egattn.cem.families import Uniform as Uniform
from egattn.cem.minimize import Minimum as Minimum
from egattn.cem.minimize import minimize as minimize
from egattn.cem.mixture import GaussianMixture as GaussianMixture
from egattn.cem.rare_event import RareEvent as RareEvent
from egattn.cem.rare_event import rare_event as rare_event
