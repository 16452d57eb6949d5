"""What every command prints about what it can show."""

LIMITS = (
    "Nothing here is evidence for or against the Riemann Hypothesis: it is a finite box. "
    "What is proved is proved in this box; sampling shows no absence.",
    "Zeros up to height 3e12 were checked rigorously by Platt and Trudgian. A sign scan "
    "is cheaper, and random starts with the same polish do as well as this search.",
)
