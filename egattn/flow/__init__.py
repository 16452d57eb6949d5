"""Score, probability flow and entropy production of stochastic processes, for any drift.

The process is dz = b(z) dt + sqrt(2 D) dW with diagonal D >= 0. Functions take one sample z of any
shape, and `jax.vmap` makes batches of them; nothing here knows what the components of z are.

- `Process`; `velocity` and `score_of`, one from the other.
- Objectives: `implicit_score_matching`, `denoising`, `one_step_denoising`, `velocity_matching`,
  `supervised`, and `penalties`.
- `production` and its `summarise`, which has the lower bound; `binned` maps.
- Whether to believe it: `dissipation`, `stein`, `transport`, `check_continuous`; `mean` and `ratio`
  with standard errors, and `controlled`, which makes them small by controls of the `generator`;
  `stationary_weights` learn with them.
- `simulate`, `ends`, and `probability_flow`, which needs diffrax (`pip install 'egattn[flow]'`).
"""

from egattn.flow.continuity import check_continuous as check_continuous
from egattn.flow.continuity import missing_divergence as missing_divergence
from egattn.flow.controls import controlled as controlled
from egattn.flow.controls import generator as generator
from egattn.flow.controls import stationary_weights as stationary_weights
from egattn.flow.controls import whitening as whitening
from egattn.flow.divergence import divergence as divergence
from egattn.flow.divergence import divergence_terms as divergence_terms
from egattn.flow.estimate import Estimate as Estimate
from egattn.flow.estimate import mean as mean
from egattn.flow.estimate import ratio as ratio
from egattn.flow.identities import Stein as Stein
from egattn.flow.identities import dissipation as dissipation
from egattn.flow.identities import stein as stein
from egattn.flow.identities import transport as transport
from egattn.flow.integrate import advance as advance
from egattn.flow.integrate import ends as ends
from egattn.flow.integrate import probability_flow as probability_flow
from egattn.flow.integrate import simulate as simulate
from egattn.flow.integrate import transition as transition
from egattn.flow.maps import Map as Map
from egattn.flow.maps import binned as binned
from egattn.flow.objectives import Penalties as Penalties
from egattn.flow.objectives import denoising as denoising
from egattn.flow.objectives import implicit_score_matching as implicit_score_matching
from egattn.flow.objectives import one_step_denoising as one_step_denoising
from egattn.flow.objectives import penalties as penalties
from egattn.flow.objectives import supervised as supervised
from egattn.flow.objectives import velocity_matching as velocity_matching
from egattn.flow.process import Field as Field
from egattn.flow.process import Process as Process
from egattn.flow.process import difference as difference
from egattn.flow.process import score_of as score_of
from egattn.flow.process import velocity as velocity
from egattn.flow.process import wrap as wrap
from egattn.flow.production import Production as Production
from egattn.flow.production import Summary as Summary
from egattn.flow.production import production as production
from egattn.flow.production import summarise as summarise
