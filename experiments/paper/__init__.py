"""The paper's experiments: each of its tables a study, that is, a list of trainings."""
