"""The methods as algorithm boxes, the moves they are made of, and the run folder they write."""
