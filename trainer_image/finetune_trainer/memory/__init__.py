"""What fits the memory: the search for a batch that does, and what to change when nothing did."""
