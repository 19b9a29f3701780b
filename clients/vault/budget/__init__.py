"""The ledger of spent privacy budget and the journal of what was asked."""
