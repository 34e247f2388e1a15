"""Models of other libraries made servable: read and converted in guarded processes, proven against their source, optimised."""
