"""Importing this registers the ROI heads and backbones with detectron2."""

from gal_d2.modeling.long_tail_predictor import LongTailOutputLayers
from gal_d2.modeling.roi_heads import GALCascadeROIHeads, GALROIHeads
from gal_d2.modeling.timm_backbone import TimmBackbone

__all__ = ["GALCascadeROIHeads", "GALROIHeads", "LongTailOutputLayers", "TimmBackbone"]
