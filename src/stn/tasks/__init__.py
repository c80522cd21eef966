"""The LightningModules: what is computed per step, and what is measured at the end."""
