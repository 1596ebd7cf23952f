"""What an exported file says about the level it holds, as JSON in the metadata of each format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import cp_basicsr
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.sparsity import prunable_layers

from .errors import ExportError

KEY = 'class_pruning'  # of the metadata
FORMAT = 1


@dataclass(frozen=True)
class Description:
    """One level of a network.

    Attributes:
        base: options of the base network, ``type`` included.
        m: group length.
        pruned: N of each prunable layer.
        dense: why each other layer with weights holds no pattern.
        in_channels: of the input.
        scale: output pixels for each input pixel along one side; None for networks that take several frames.
        multiple: heights and widths of inputs must be multiples of this number of pixels.
    """

    base: dict[str, Any]
    m: int
    pruned: dict[str, int]
    dense: dict[str, str] = field(default_factory=dict)
    in_channels: int = 3
    scale: int | None = None
    multiple: int = 1

    @classmethod
    def of(cls, net: ClassPruningNet, level: int) -> Description:
        """Describe a level of a network."""
        return cls(
            base={key: value for key, value in net.base_options.items() if not key.endswith('_path')},
            m=net.pattern.m,
            pruned={name: layer.pattern.levels[level] for name, layer in prunable_layers(net.base).items()},
            dense=dict(net.conversion.left_dense),
            in_channels=net.in_channels,
            scale=net.scale,
            multiple=net.multiple,
        )

    def as_text(self) -> str:
        """One line of JSON."""
        return json.dumps({'format': FORMAT, 'written_by': f'cp_basicsr {cp_basicsr.__version__}', **asdict(self)})

    @classmethod
    def from_text(cls, text: str, where: str) -> Description:
        """Read :meth:`as_text`.

        Raises:
            ExportError: it is damaged or was written by a later version; ``where`` names the file.
        """
        try:
            content = json.loads(text)
            number = content.pop('format')
            content.pop('written_by')
        except (ValueError, KeyError, AttributeError) as error:
            raise ExportError(
                f'{where}: its description {text[:60]!r} is damaged ({error!r}). Export it again.'
            ) from None
        if number > FORMAT:
            raise ExportError(
                f'{where}: its description has format {number}, written by a later version of cp_basicsr; this one '
                f'reads up to {FORMAT}. Update cp_basicsr, or give --m and --n.'
            )
        return cls(**content)

    @classmethod
    def in_metadata(cls, metadata: Mapping[str, str], where: str) -> Description | None:
        """The description among a file's metadata; None: there is none."""
        return cls.from_text(metadata[KEY], where) if KEY in metadata else None
