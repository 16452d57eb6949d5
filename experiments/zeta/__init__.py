"""Cross-entropy search on zeta: what it finds, what balls prove, and what it cannot show."""
