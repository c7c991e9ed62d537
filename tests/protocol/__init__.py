"""The pure core: bytes in, bytes out."""
