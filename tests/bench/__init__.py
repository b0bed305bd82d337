"""What `make bench` runs: `run.py`, with one module a group of rows."""
