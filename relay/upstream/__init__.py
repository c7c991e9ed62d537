"""Upstreams: which one a request goes to, and the call to it."""
