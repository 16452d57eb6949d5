"""Active matter: score, probability flow and entropy production of self-propelled particles."""
