"""Distances of embeddings: one file per distance, its name is the value of `--metric`."""
