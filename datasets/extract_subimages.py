"""Cut large photographs into overlapping sub-images, as BasicSR does for DIV2K. Running it again finishes the rest.

All sizes are in high-resolution pixels; a low-resolution folder only needs its --scale:
    python datasets/extract_subimages.py datasets/DIV2K/DIV2K_train_HR datasets/DIV2K/DIV2K_train_HR_sub
    python datasets/extract_subimages.py datasets/DIV2K/DIV2K_train_LR_bicubic/X4 \
        datasets/DIV2K/DIV2K_train_LR_bicubic/X4_sub --scale 4
"""

import argparse
import sys

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.subimages import extract_subimages
from cp_basicsr.tools.arguments import read_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', help='folder of images')
    parser.add_argument('output', help='folder to write to')
    parser.add_argument(
        '--scale',
        type=int,
        default=1,
        choices=range(1, 17),
        metavar='N',
        help='scale of a low-resolution folder (default: 1, originals)',
    )
    parser.add_argument('--crop-size', type=int, default=480, help='side of a sub-image (default: 480)')
    parser.add_argument('--step', type=int, default=240, help='distance between sub-images (default: 240)')
    parser.add_argument('--thresh-size', type=int, default=0, help='remainder at the edge that is dropped (default: 0)')
    parser.add_argument('--mod', type=int, default=12, help='a multiple of every scale in use (default: 12)')
    parser.add_argument('--workers', type=read_count, metavar='N', help='threads (default: one for each core)')
    args = parser.parse_args()
    try:
        extract_subimages(
            args.input, args.output, args.crop_size, args.step, args.thresh_size, args.scale, args.mod, args.workers
        )
    except DataError as error:
        sys.exit(f'extract_subimages.py: {error}')


if __name__ == '__main__':
    main()
