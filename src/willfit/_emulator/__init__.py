"""PyTorch's own CUDA code on a machine with no GPU: a stand-in for what lies below it, and the process it runs in."""
