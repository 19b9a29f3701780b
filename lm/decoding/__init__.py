"""Writing text token by token: one decode loop, engines, sampling, fusion, drafts."""
