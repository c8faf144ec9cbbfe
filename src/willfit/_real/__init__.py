"""A job run on real tensors, and written down as the same trace: for the emulated engine and for verification."""
