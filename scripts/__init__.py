"""Commands: launching runs, simulations, pre-training, reports."""
