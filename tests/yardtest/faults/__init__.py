"""Random cases of a cache that is harmed: see `case`."""
