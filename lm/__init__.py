"""What both sides do with language models: load, batch, train, DP-SGD, sample, embed, account."""
