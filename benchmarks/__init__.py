"""What performance claims are made with: each benchmark is one command, with its peer measured in the same run."""
