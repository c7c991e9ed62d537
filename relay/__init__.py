"""Relay: a resumable stream relay with persistence, between LLM clients and LLM APIs."""

__version__ = "0.2.0"
