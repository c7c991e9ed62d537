"""Who may ask for what: the relay's own keys, how often a caller may ask, and the gate that every request passes."""
