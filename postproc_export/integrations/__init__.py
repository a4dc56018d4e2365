"""Adapters for the libraries that others build their pipelines with; each module says which extra it needs."""
