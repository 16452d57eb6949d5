"""The paper's tables and figures, one module per study; `python -m experiments.paper run STUDY`."""
