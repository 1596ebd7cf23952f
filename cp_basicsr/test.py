"""`python -m cp_basicsr.test`: `basicsr/test.py` from any folder, writing below the working directory.

Takes BasicSR's own arguments: -opt, --launcher, --auto_resume, --debug, --local_rank, --force_yml.
"""

import os

from cp_basicsr import launch


def main() -> None:
    """Test as the option file says."""
    launch.prepare()
    from basicsr.test import test_pipeline

    test_pipeline(os.getcwd())


if __name__ == '__main__':
    main()
