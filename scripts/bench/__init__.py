"""Measurements that are run by hand: quality of generated text, speed, memory."""
