"""Bytes by content: verified plaintext beside the containers, sealed blobs in the stores behind."""
