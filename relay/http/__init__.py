"""The HTTP server: connections, HTTP/1.1 and HTTP/2, and what the application may ask of them."""
