"""Run records, tables, statistics, claims and figures. Imports no torch: rendering takes seconds on any machine."""
