"""Small real models from real market data, so that a bare machine has something to serve."""
