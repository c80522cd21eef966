"""How a run is watched while it trains: W&B, pictures, snapshots."""
