"""Test as an option file says: `basicsr/test.py` from any folder, writing below the working directory.

    cp-test -opt options/test_cp_edsr.yml

Takes BasicSR's own arguments. `python -m cp_basicsr.test` is the same.
"""

import os

from cp_basicsr import launch


def main() -> None:
    """Test as the option file says."""
    launch.prepare(__doc__)
    from basicsr.test import test_pipeline

    test_pipeline(os.getcwd())


if __name__ == '__main__':
    main()
