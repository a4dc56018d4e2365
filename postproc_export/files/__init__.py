"""Files on disk: copied, written whole or not at all, and where a result goes."""
