"""The migration's memory: an append-only journal, the state folded from it, and the locks around it."""
