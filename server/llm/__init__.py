"""The cloud LLM behind one interface, with several engines."""
