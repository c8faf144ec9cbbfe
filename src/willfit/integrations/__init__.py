"""willfit in the loops that people have: Accelerate, Transformers, Lightning. A module for each, imported by itself."""
