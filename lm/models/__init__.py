"""Models on disk and in memory: load, save, describe, batch."""
