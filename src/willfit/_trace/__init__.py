"""Run a training job on fake tensors and write down every allocation."""
