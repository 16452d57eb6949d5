"""Ahead-of-time compilation: what the training step needs on a TPU pod, found out without one."""

from egattn.compile.collectives import Collectives as Collectives
from egattn.compile.collectives import collectives as collectives
from egattn.compile.config import CompileConfig as CompileConfig
from egattn.compile.plan import Plan as Plan
from egattn.compile.plan import plan as plan
from egattn.compile.search import Search as Search
from egattn.compile.search import search as search
