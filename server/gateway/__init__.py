"""The cloud LLM served to sites for G-Boost: who may ask, what travels, who computes."""
