"""G-Boost at the site: searches, writers, baselines, and the cloud LLM they may ask."""
