"""What a strategy is run with: the moves, the sites, the run folder and its summary."""
