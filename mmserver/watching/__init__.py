"""Watching directories of artifact files: scan, group, settle, read; no database, no parsing, no threads."""
