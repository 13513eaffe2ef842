"""Any timm model with feature maps as a detectron2 backbone, with an FPN on top."""

from __future__ import annotations

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from timm.layers import BatchNormAct2d
from torch import nn

from gal_d2.errors import UserError
from gal_d2.modeling.timm_weights import read_timm_weights


class TimmBackbone(Backbone):
    """Feature maps of a timm model under the names ``stride4``, ``stride8``, ...

    Args:
        name: a timm model name.
        strides: which feature maps to give out, by their stride in pixels.
        pretrained: load timm's weights (from the hub or its cache).
        weights: a local weight file to load in place of the hub's.
        freeze_bn: turn batch normalisation into fixed affine layers.
        freeze_stride: what comes before the feature map of this stride is not trained; 0: all is.

    Raises:
        UserError: no such model, no such stride, or weights that cannot be had or are another
            model's.
    """

    def __init__(
        self,
        name: str,
        *,
        strides: list[int],
        pretrained: bool = False,
        weights: str = "",
        freeze_bn: bool = True,
        freeze_stride: int = 0,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            import difflib

            close = difflib.get_close_matches(name, timm.list_models(), n=5)
            hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()."
            raise UserError(f"MODEL.TIMM.NAME is '{name}', which timm does not know: {hint}")
        tensors = read_timm_weights(weights, name) if weights else None
        kwargs = {"features_only": True}
        if "swin" in name or "maxvit" in name or "coat" in name:
            kwargs["strict_img_size"] = False  # windows adapt to the image
        try:
            with torch.device("meta"):  # no memory, no time: only its list of feature maps
                available = timm.create_model(name, **kwargs).feature_info.reduction()
        except Exception as error:
            raise UserError(f"MODEL.TIMM.NAME '{name}' gives no feature maps: {error}") from error
        if missing := set(strides) - set(available):
            raise UserError(
                f"MODEL.TIMM.STRIDES asks for {sorted(missing)}, but '{name}' has {available}."
            )
        if freeze_stride and freeze_stride not in strides:
            raise UserError(
                f"MODEL.TIMM.FREEZE_STRIDE is {freeze_stride}: choose from MODEL.TIMM.STRIDES, "
                f"{sorted(strides)}, or 0 to train all of it."
            )
        # Stages beyond the last one that is asked for are not built.
        kwargs["out_indices"] = [available.index(stride) for stride in sorted(strides)]
        overlay = {"pretrained_cfg_overlay": {"state_dict": tensors}} if weights else {}
        try:
            model = timm.create_model(
                name, pretrained=pretrained or bool(weights), **kwargs, **overlay
            )
        except Exception as error:
            if not (pretrained or weights):
                raise
            raise UserError(
                f"the pretrained weights of timm's '{name}' could not be loaded ({error}): set "
                "MODEL.TIMM.WEIGHTS to a local file, or MODEL.TIMM.PRETRAINED False to start from "
                "random weights."
            ) from error
        self.model = freeze_batch_norm(model) if freeze_bn else model
        self._index = {f"stride{s}": sorted(strides).index(s) for s in strides}
        if freeze_stride:
            names = model.feature_info.module_name()
            _freeze_up_to(self.model, names[self._index[f"stride{freeze_stride}"]])
        channels = model.feature_info.channels()
        self._out_features = list(self._index)
        self._out_feature_strides = dict(zip(self._index, strides, strict=True))
        self._out_feature_channels = {k: channels[i] for k, i in self._index.items()}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Args: x, (N, 3, H, W) float. Returns: (N, C, H/stride, W/stride) maps by name."""
        maps = self.model(x)
        out = {}
        for name, index in self._index.items():
            value = maps[index]
            if value.shape[1] != self._out_feature_channels[name]:  # some transformers give NHWC
                value = value.permute(0, 3, 1, 2).contiguous()
            out[name] = value
        return out

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """The fixed affine layer of timm's batch normalisation that ends with an activation.

    Args:
        norm: the layer that it stands in for; its activation and drop layer are taken over.
    """

    def __init__(self, norm: BatchNormAct2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.load_state_dict(FrozenBatchNorm2d.convert_frozen_batchnorm(norm).state_dict())
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """A module with fixed affine layers in place of batch normalisation; changed in place.

    detectron2's own conversion takes timm's layers that normalise *and* activate for plain ones,
    and so takes the activations out of the network.
    """
    if isinstance(module, BatchNormAct2d):
        return FrozenBatchNormAct2d(module)
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        return FrozenBatchNorm2d.convert_frozen_batchnorm(module)
    for name, child in list(module.named_children()):
        module.add_module(name, freeze_batch_norm(child))
    return module


def _freeze_up_to(model: nn.Module, last: str) -> None:
    """Parameters up to those of the module ``last`` ("blocks.2") get no gradient.

    timm registers modules in the order in which they are run, and writes "blocks_2" for the same
    module in some of its wrappers.
    """
    prefixes = f"{last}.", f"{last.replace('.', '_')}."
    named = list(model.named_parameters())
    end = max(
        (k for k, (name, _) in enumerate(named, start=1) if name.startswith(prefixes)), default=0
    )
    if not end:
        raise UserError(
            f"MODEL.TIMM.FREEZE_STRIDE: the layers before '{last}' of {type(model).__name__} are "
            "not known; set it to 0."
        )
    for _, parameter in named[:end]:
        parameter.requires_grad = False


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """An FPN on the timm model that ``cfg.MODEL.TIMM`` names: p2 for stride 4, p3 for 8, ...

    With stride 32 among ``STRIDES`` there is a p6 for the RPN, as in detectron2.
    """
    bottom_up = TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        strides=list(cfg.MODEL.TIMM.STRIDES),
        pretrained=cfg.MODEL.TIMM.PRETRAINED,
        weights=cfg.MODEL.TIMM.WEIGHTS,
        freeze_bn=cfg.MODEL.TIMM.FREEZE_BN,
        freeze_stride=cfg.MODEL.TIMM.FREEZE_STRIDE,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=list(bottom_up.output_shape()),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool() if 32 in cfg.MODEL.TIMM.STRIDES else None,  # it pools p5
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
