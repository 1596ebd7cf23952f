"""Make the demo set from the photographs inside scikit-image; nothing is downloaded."""

import argparse
import sys
from pathlib import Path

from cp_basicsr.data.demo_set import make_demo_set
from cp_basicsr.data.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out', type=Path, default=Path('datasets/demo'), help='default: datasets/demo below this folder'
    )
    parser.add_argument('--scale', type=int, default=2, choices=(2, 3, 4), help='default: 2')
    args = parser.parse_args()
    try:
        make_demo_set(args.out, args.scale)
    except DataError as error:
        sys.exit(f'make_demo_set.py: {error}')


if __name__ == '__main__':
    main()
