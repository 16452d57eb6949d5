"""The attention operator: one public function, several implementations behind it."""

from egattn.attention.api import entropy_attention as entropy_attention
from egattn.attention.select import implementations as implementations
