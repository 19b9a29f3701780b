"""How the LLM itself is measured: its task accuracy and its general ability."""
