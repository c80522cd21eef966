"""Spatial Transformer Networks (Jaderberg et al., NIPS 2015): a replication suite."""


def load(source, output_dir=None):
    """The trained network of a model file, a record (or its file), or a run's folder; in evaluation mode, on the CPU.

    `output_dir`: where the runs left their weights; by default the folder `outputs` beside that of the results.
    Raises: DataError, RecordError (both one line) for files that are not there, or not whole.
    """
    from stn.trained import find  # which imports the suite; stn.transform needs torch alone

    return find(source, output_dir=output_dir).net()
