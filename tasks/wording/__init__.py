"""How a task is put into words, and how answers are read."""
