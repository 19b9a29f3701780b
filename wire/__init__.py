"""The messages between server and vaults, and how they travel in a Flower RecordDict."""
