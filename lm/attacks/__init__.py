"""Attacks that audit privacy claims."""
