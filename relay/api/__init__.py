"""The HTTP edge: requests in, streams and answers out."""
