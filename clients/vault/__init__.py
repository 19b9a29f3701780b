"""The vault: records, SLM, DP generator, budget ledger and policy of one site, behind a handful of
methods."""
