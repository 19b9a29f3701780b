"""What is learned: labels, wording, prompts; where text comes from; how it is split over
clients."""
