"""Verified, decrypted copies on this node, beside the containers."""
