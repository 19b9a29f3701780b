"""Differential privacy of training: clipped sums, noise, DP-SGD, accounting."""
