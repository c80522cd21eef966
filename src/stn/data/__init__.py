"""Data: sources with their checksums, and distortions computed in batches on the device."""
