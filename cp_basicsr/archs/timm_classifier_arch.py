"""Any timm model as the classifier, for routing whole images where a stronger classifier pays."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from safetensors.torch import load_file
from torch import Tensor, nn

from cp_basicsr.options import OptionError, nearest


@ARCH_REGISTRY.register()
class TimmDifficultyClassifier(nn.Module):
    """A timm model with one class for each level. Nothing is downloaded.

    Args:
        num_levels: classes, one for each level.
        in_channels: 1 for gray, 3 for colour.
        model_name: a name from ``timm.list_models()``.
        checkpoint: local .pth or .safetensors file of that model; a head of another size is left out. None starts from
            random weights.
        input_size: images are resized to this square; None feeds them as they are, unless the model needs a fixed size.

    Raises:
        OptionError: the name or the file is not known.
    """

    by_tile = False

    def __init__(
        self,
        num_levels: int,
        model_name: str,
        in_channels: int = 3,
        checkpoint: str | None = None,
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(model_name):
            raise OptionError(
                f'network_g.classifier.model_name is {model_name!r}, which timm {timm.__version__} does not have.'
                f'{nearest(model_name, timm.list_models())} See timm.list_models().'
            )
        self.net = timm.create_model(model_name, pretrained=False, num_classes=num_levels, in_chans=in_channels)
        config = self.net.default_cfg
        self.input_size = input_size or (config['input_size'][-1] if config.get('fixed_input_size') else None)
        self.least_size = 32  # the total stride of nearly every timm backbone
        if checkpoint is not None:
            self._load(Path(checkpoint))

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise OptionError(
                f'network_g.classifier.checkpoint: no file {str(path)!r}. Nothing is downloaded; fetch it.'
            )
        values = load_file(path) if path.suffix == '.safetensors' else torch.load(path, 'cpu', weights_only=True)
        own = self.net.state_dict()
        fitting = {key: value for key, value in values.items() if key in own and value.shape == own[key].shape}
        head = getattr(self.net, 'default_cfg', {}).get('classifier', 'head')
        missing = [key for key in own if key not in fitting and not key.startswith(head)]
        if missing:
            raise OptionError(f'{path} does not fit {type(self.net).__name__}: no fitting value for {missing[:5]}.')
        self.net.load_state_dict(fitting, strict=False)

    def forward(self, x: Tensor, tile: int | None = None) -> Tensor:
        """Logits ``[B, L, 1, 1]`` of whole images ``[B, C, H, W]`` in [0, 1].

        Raises:
            OptionError: a tile is asked for.
        """
        if tile is not None:
            raise OptionError(
                f'TimmDifficultyClassifier predicts whole images, but val.tile.size is {tile}: write `tile: ~` in val.'
            )
        if self.input_size is not None:
            x = F.interpolate(x, (self.input_size, self.input_size), mode='bilinear', antialias=True)
        elif min(x.shape[-2:]) < self.least_size:
            size = [max(self.least_size, side) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode='bilinear')
        return self.net(x)[:, :, None, None]
