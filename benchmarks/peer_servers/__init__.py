"""Servers that mmserver is compared with. Each file but `contenders` runs under the peer's own Python, which has no mmserver."""
