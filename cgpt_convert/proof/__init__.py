"""Which weights are these? Digests, locks, comparisons, and what a converted file claims."""
