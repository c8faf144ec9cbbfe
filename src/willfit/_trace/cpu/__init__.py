"""The CPU as the target: what a training step asks of the CPU's allocator, found without computing it."""
