"""Commands that attack and audit."""
