"""A run: from resolved settings to one record."""
