"""Checking, preparing and starting a run."""
