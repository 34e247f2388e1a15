"""Programs that talk to a server: typed, with retries where they are safe, and a fallback for when it is away."""
