"""Many runs: their plan, rows, page and report."""
