"""Predictions held against what really happened: a file for each way of measuring."""
