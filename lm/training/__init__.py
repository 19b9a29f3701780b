"""Training without noise: classifiers, causal LMs, tuning of an LLM, reward models."""
