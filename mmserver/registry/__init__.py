"""Explicit versions: registered one by one, put into stages, compared, retired; any model has stages, watched ones too."""
