"""What the LLM does with demonstrations: group, judge, write, augment."""
