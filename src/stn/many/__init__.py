"""Many runs: which train together, where, in which order, and searches for settings."""
