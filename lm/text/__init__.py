"""Plain text: words, rules, near-copies, embeddings."""
