"""Running the application under waitress: in one process that ends cleanly, or in several that share an address."""
