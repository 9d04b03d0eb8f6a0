"""The fit of an acceptance model to traces: nets, stopping rule, cross-validation, and the run."""
