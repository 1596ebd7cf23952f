"""Train as an option file says: `basicsr/train.py` from any folder, writing below the working directory.

    cp-train -opt options/train_cp_edsr.yml
    torchrun --nproc-per-node 2 -m cp_basicsr.train -opt options/train_cp_edsr.yml --launcher pytorch

Takes BasicSR's own arguments. `python -m cp_basicsr.train` is the same.
"""

import os

from cp_basicsr import autoload, launch

# Here, not in main: workers that are spawned import this file before they unpickle a BasicSR dataset.
autoload.install()


def main() -> None:
    """Train as the option file says."""
    launch.prepare(__doc__)
    from basicsr.train import train_pipeline

    train_pipeline(os.getcwd())


if __name__ == '__main__':
    main()
