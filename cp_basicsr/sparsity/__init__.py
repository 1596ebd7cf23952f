"""N:M sparsity in pure PyTorch: patterns, ranks, prunable layers, conversion of networks, routes and MACs."""

from .allocation import allocate, layer_distances
from .convert import (
    ConversionReport,
    adopt_dense_values,
    bake_state_dict,
    convert,
    native_state_dict,
    prunable_layers,
    refresh_ranks,
    set_straight_through,
)
from .layers import Convolution, NMConv2d, NMConv3d, NMLinear, PrunableLayer, plain_convolution
from .macs import MacTable, trace_macs
from .masks import level_mask, weight_ranks
from .moments import as_rows, dense_moments, ridge
from .pattern import NMPattern, PatternError
from .placement import ImagePlacement, Placement, TokenPlacement, UnplacedLayerError, WindowPlacement
from .reconstruction import reconstruct_levels, starts_dense
from .route import LevelMapRoute, Route, UniformRoute, active_route, routed

__all__ = [
    'ConversionReport',
    'Convolution',
    'ImagePlacement',
    'LevelMapRoute',
    'MacTable',
    'NMConv2d',
    'NMConv3d',
    'NMLinear',
    'NMPattern',
    'PatternError',
    'Placement',
    'PrunableLayer',
    'Route',
    'TokenPlacement',
    'UniformRoute',
    'UnplacedLayerError',
    'WindowPlacement',
    'active_route',
    'adopt_dense_values',
    'allocate',
    'as_rows',
    'bake_state_dict',
    'convert',
    'dense_moments',
    'layer_distances',
    'level_mask',
    'native_state_dict',
    'plain_convolution',
    'prunable_layers',
    'reconstruct_levels',
    'refresh_ranks',
    'ridge',
    'routed',
    'set_straight_through',
    'starts_dense',
    'trace_macs',
    'weight_ranks',
]
