"""Fetch and check data sets: python -m experiments.prepare mnist [--data-dir data]"""

import argparse

from experiments.cli import main


def prepare() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=["mnist"])
    parser.add_argument("--data-dir", default="data", help="where data sets live, or a folder that has the files")
    arguments = parser.parse_args()
    from stn.data.mnist import prepare_mnist

    print(f"MNIST is complete and checked: {prepare_mnist(arguments.data_dir)}")


if __name__ == "__main__":
    main(prepare)
