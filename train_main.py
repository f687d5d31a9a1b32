"""Trains a model: python train_main.py --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=600

The same as `mm01-train`, which an installed package has; `--help` lists the flags and exit codes.
"""

import sys

from mm01_jax.train.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
