"""Fitting an acceptance model to traces: cross-validation, reports, and the whole run."""
