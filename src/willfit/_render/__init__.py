"""Renderers, a file each: they turn plain results into what people and programs read, and know nothing of torch."""
