"""eaglerl's choice of drafts inside vLLM."""
