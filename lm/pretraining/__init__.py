"""Pre-training of stand-in models on public text."""
