"""Spatial Transformer Networks (Jaderberg et al., NIPS 2015): a replication suite."""


def load(source, output_dir=None):
    """The trained network of a model file, a record or a run's folder: see `stn.trained.load`."""
    from stn.trained import load  # which imports the suite; stn.transform needs torch alone

    return load(source, output_dir)
