"""The worlds that the project makes itself, and their stand-in models."""
