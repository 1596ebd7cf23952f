"""`python -m cp_basicsr.train`: `basicsr/train.py` from any folder, writing below the working directory.

Takes BasicSR's own arguments: -opt, --launcher, --auto_resume, --debug, --local_rank, --force_yml.
"""

import os

from cp_basicsr import autoload, launch

# Here, not in main: workers that are spawned import this file before they unpickle a BasicSR dataset.
autoload.install()


def main() -> None:
    """Train as the option file says."""
    launch.prepare()
    from basicsr.train import train_pipeline

    train_pipeline(os.getcwd())


if __name__ == '__main__':
    main()
