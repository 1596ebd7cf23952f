"""Put a folder of images into an LMDB of BasicSR's layout. The LMDB folder appears only when it is complete.

    python datasets/make_lmdb.py datasets/DIV2K/DIV2K_train_HR_sub datasets/DIV2K/DIV2K_train_HR_sub.lmdb
    python datasets/make_lmdb.py datasets/DIV2K/DIV2K_train_LR_bicubic/X4_sub \
        datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb
"""

import argparse
import sys

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.lmdb_folder import make_lmdb
from cp_basicsr.tools.arguments import read_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', help='folder of images')
    parser.add_argument('output', help='LMDB folder to write, ending in .lmdb')
    parser.add_argument(
        '--compress-level', type=int, default=1, choices=range(10), metavar='0-9', help='PNG compression (default: 1)'
    )
    parser.add_argument('--workers', type=read_count, metavar='N', help='threads (default: one for each core)')
    args = parser.parse_args()
    try:
        make_lmdb(args.input, args.output, args.compress_level, args.workers)
    except DataError as error:
        sys.exit(f'make_lmdb.py: {error}')


if __name__ == '__main__':
    main()
