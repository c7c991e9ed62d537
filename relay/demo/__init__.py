"""A relay to try: `run` starts everything, `model` is its upstream, `control` what its page may ask of it."""
