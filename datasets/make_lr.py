"""Make low-resolution images equal to MATLAB's bicubic, in BasicSR's folder layout. Running it again finishes the rest.

Set5 for x2, x3 and x4, with the mod-12 originals:
    python datasets/make_lr.py datasets/Set5/original 'datasets/Set5/LRbicx{scale}' --gt-out datasets/Set5/GTmod12

DIV2K, whose names end in x2, x3 and x4:
    python datasets/make_lr.py datasets/DIV2K/DIV2K_train_HR 'datasets/DIV2K/DIV2K_train_LR_bicubic/X{scale}' \
        --suffix 'x{scale}'
"""

import argparse
import sys

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.low_resolution import make_lr_folders
from cp_basicsr.data.matlab_resize import MAX_SCALE
from cp_basicsr.tools.arguments import read_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', help='folder of high-resolution images')
    parser.add_argument('output', help='folder to write to; {scale} in it becomes the scale')
    parser.add_argument(
        '--scale',
        type=int,
        nargs='+',
        default=[2, 3, 4],
        choices=range(2, MAX_SCALE + 1),
        metavar='N',
        help='default: 2 3 4',
    )
    parser.add_argument('--suffix', default='', help='added to each name; {scale} becomes the scale (default: nothing)')
    parser.add_argument(
        '--mod',
        type=int,
        help='crop the originals to a multiple of this first '
        '(default: each scale; with --gt-out the least common multiple of the scales)',
    )
    parser.add_argument('--gt-out', help='also write the cropped originals to this folder')
    parser.add_argument('--workers', type=read_count, metavar='N', help='threads (default: one for each core)')
    args = parser.parse_args()
    try:
        make_lr_folders(args.input, args.output, args.scale, args.suffix, args.mod, args.gt_out, args.workers)
    except DataError as error:
        sys.exit(f'make_lr.py: {error}')


if __name__ == '__main__':
    main()
