"""Training scripts that know nothing of willfit: run in a confined process, and followed by hooks, by either engine."""
