"""Make JPEG-compressed copies of images, stored as PNG under the same names. Running it again finishes the rest.

DIV2K, sub-images and validation images:
    python datasets/make_jpeg.py datasets/DIV2K/DIV2K_train_HR_sub datasets/DIV2K/DIV2K_train_JPEG40_sub --quality 40
    python datasets/make_jpeg.py datasets/DIV2K/DIV2K_valid_HR datasets/DIV2K/DIV2K_valid_JPEG40 --quality 40

LIVE1, which comes as BMP, so that the originals are written as PNG too:
    python datasets/make_jpeg.py datasets/LIVE1/bmp datasets/LIVE1/JPEG40 --quality 40 --gt-out datasets/LIVE1/original
"""

import argparse
import sys

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.jpeg_copies import make_jpeg_folder
from cp_basicsr.tools.arguments import read_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', help='folder of images')
    parser.add_argument('output', help='folder to write to')
    parser.add_argument('--quality', type=int, required=True, metavar='1-100', help="of OpenCV's JPEG encoder")
    parser.add_argument('--gt-out', help='also write the originals as PNG to this folder; needed if they are not PNG')
    parser.add_argument('--workers', type=read_count, metavar='N', help='threads (default: one for each core)')
    args = parser.parse_args()
    try:
        make_jpeg_folder(args.input, args.output, args.quality, args.gt_out, args.workers)
    except DataError as error:
        sys.exit(f'make_jpeg.py: {error}')


if __name__ == '__main__':
    main()
