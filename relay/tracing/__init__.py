"""Traces: a span for each stream, and one for each reader who comes back to it."""
