"""The parts of the pytest plugin. None of them imports torch before a test predicts something."""
