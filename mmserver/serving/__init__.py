"""Predicting: from a request's symbol and features to a decision. Knows no HTTP; everything here may run in any thread."""
