"""What experiments' predictions were and what came of them: written at once, moved to a database file in batches, summed as it goes."""
