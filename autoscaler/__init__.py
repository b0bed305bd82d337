"""Watches demand, adds machines and removes them."""
