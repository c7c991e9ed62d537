"""The log: one Redis stream per generation, and how its servers are reached."""
