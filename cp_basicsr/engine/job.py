"""What the driver is told of one convolution: plain structures that Python fills and compiled code reads."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import numpy as np
from torch import Tensor


class Activation(IntEnum):
    """What becomes of a sum and its bias before anything is added to it."""

    NONE = 0
    RELU = 1
    SLOPE = 2  # LeakyReLU and PReLU: a factor for each channel where the value is negative
    GELU = 3  # the exact one, with the error function


def map_fields(name: str) -> list[tuple[str, type]]:
    """Fields of a structure that say where a feature map lies: its address and, in floats, the strides between images,
    channels and rows. Columns are neighbours."""
    return [(name, ctypes.c_void_p), *((f'{name}_{axis}', ctypes.c_int64) for axis in ('image', 'channel', 'row'))]


def map_values(name: str, x: Tensor | None) -> dict[str, int | None]:
    """Values of :func:`map_fields`; None: there is no such map."""
    if x is None:
        return {name: None}
    return {name: x.data_ptr(), **{f'{name}_{axis}': x.stride(k) for k, axis in enumerate(('image', 'channel', 'row'))}}


class Job(ctypes.Structure):
    """One layer on one batch of images. Strides are in floats; columns are neighbours.

    ``planes`` points at :data:`PLANE` of each channel of each image: they may lie in several feature maps, so that a
    concatenation along the channels need not be made. Where ``doubled`` is 1 (else 0) they are half as high and wide as
    ``height`` x ``width``, and each of their pixels stands twice along rows and columns. ``levels`` points at
    :class:`LevelCode` of each level, ``bands``, ``strips``, ``groups`` and ``runs`` at the tables of
    :mod:`cp_basicsr.engine.schedule`. Strides of output and residual are those after PixelShuffle by ``shuffle``.
    ``sums`` is where in a thread's scratch memory, in floats, the sums of a strip are kept. For levels that run as
    Winograd's convolution, ``transformed`` and ``products`` are where the transformed inputs of ``transformed_packs``
    packs of positions, and the products of one pack, are kept, and ``transformed_step`` is the floats from one
    product's inputs to the next's, and ``terms`` how many of 4 bytes each product of a tile is the sum of. Inputs are
    copied for whole tiles of ``tile_rows`` output rows.
    ``upwards`` (0 or 1) takes the bands from the last to the first. ``next_band`` is the next band that no thread has
    taken yet.
    """

    _fields_ = [
        ('planes', ctypes.c_void_p),
        ('height', ctypes.c_int64),
        ('width', ctypes.c_int64),
        ('channels', ctypes.c_int64),
        ('doubled', ctypes.c_int64),
        *map_fields('output'),
        ('outputs', ctypes.c_int64),
        *map_fields('residual'),
        ('scale', ctypes.c_float),
        ('activation', ctypes.c_int32),
        ('shuffle', ctypes.c_int32),
        ('slopes', ctypes.c_void_p),
        ('kernel_rows', ctypes.c_int64),
        ('kernel_columns', ctypes.c_int64),
        ('stride', ctypes.c_int64),
        ('pad_rows', ctypes.c_int64),
        ('pad_columns', ctypes.c_int64),
        ('scratch_phase', ctypes.c_int64),
        ('scratch_row', ctypes.c_int64),
        ('scratch_plane', ctypes.c_int64),
        ('sums', ctypes.c_int64),
        ('block', ctypes.c_int64),
        ('transformed', ctypes.c_int64),
        ('transformed_step', ctypes.c_int64),
        ('terms', ctypes.c_int64),
        ('transformed_packs', ctypes.c_int64),
        ('products', ctypes.c_int64),
        ('tile_rows', ctypes.c_int64),
        ('levels', ctypes.c_void_p),
        ('bands', ctypes.c_void_p),
        ('band_count', ctypes.c_int64),
        ('strips', ctypes.c_void_p),
        ('groups', ctypes.c_void_p),
        ('runs', ctypes.c_void_p),
        ('upwards', ctypes.c_int64),
        ('next_band', ctypes.c_int64),
    ]


class LevelCode(ctypes.Structure):
    """One level of a layer: ``entries`` and ``weights`` point at one pointer for each part of each block of outputs,
    ``transformed`` (null: there are none) at one for each block to its transformed weights."""

    _fields_ = [
        ('entries', ctypes.c_void_p),
        ('weights', ctypes.c_void_p),
        ('bias', ctypes.c_void_p),
        ('parts', ctypes.c_int64),
        ('transformed', ctypes.c_void_p),
    ]


# Where a channel of an image begins, in bytes, and the floats from one of its rows to the next.
PLANE = np.dtype([('address', 'i8'), ('row', 'i8')])
# Strips [first, first + count) are done in order by one thread: they are neighbours along the same rows.
BAND = np.dtype([('first', 'i4'), ('count', 'i4')])
# Output rows [y, y + rows) of an image, and columns from x on in vectors of 16, whose inputs are in scratch memory at
# the same time, and the groups [first, first + count) that they fall into.
STRIP = np.dtype([(name, 'i4') for name in ('image', 'y', 'rows', 'x', 'vectors', 'first', 'count')])
# What runs at one level: runs [first, first + count), and the vectors of all of them in a row.
GROUP = np.dtype([(name, 'i4') for name in ('level', 'first', 'count', 'vectors')])
# Columns of a strip from its column x on, and the vectors in the group's runs before this one. The last vector may
# reach over the end: what it spoils there is written later, by the next group.
RUN = np.dtype([(name, 'i4') for name in ('x', 'vectors', 'before')])
