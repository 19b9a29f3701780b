"""The server's side: the ServerApp, the cloud LLM, and what it does with demonstrations."""
