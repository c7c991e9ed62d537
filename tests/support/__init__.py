"""What the tests stand on: a scripted upstream, relay processes, a raw client, stores."""
