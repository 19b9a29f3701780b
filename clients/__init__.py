"""The sites' side: the ClientApp (a courier) and the vault that holds everything private."""
