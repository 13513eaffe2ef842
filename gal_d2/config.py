"""Every configuration key that GAL-D2 adds to detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_gal_config(cfg: CfgNode) -> None:
    """Add this project's keys, with their defaults, to a detectron2 config.

    Args:
        cfg: the result of ``detectron2.config.get_cfg()``; changed in place.
    """
    _add_detectron2_head_keys(cfg)
    _add_model_keys(cfg)
    _add_solver_keys(cfg)

    cfg.GAL = CfgNode()
    _add_data_keys(cfg.GAL)
    _add_copy_paste_keys(cfg.GAL)
    _add_scorer_keys(cfg.GAL)
    _add_accept_keys(cfg.GAL)


def _add_detectron2_head_keys(cfg: CfgNode) -> None:
    """Keys that detectron2 has after 0.6; same names and meaning there."""
    box_head = cfg.MODEL.ROI_BOX_HEAD
    for key, default in (
        # Sigmoid cross entropy in place of softmax cross entropy: no background class.
        ("USE_SIGMOID_CE", False),
        # Federated loss: only a sample of the classes is penalised as negative at each step.
        ("USE_FED_LOSS", False),
        # A class is sampled as a negative with probability ~ image_count ** POWER.
        ("FED_LOSS_FREQ_WEIGHT_POWER", 0.5),
        # How many classes the loss of a step sees, positives included.
        ("FED_LOSS_NUM_CLASSES", 50),
    ):
        if key not in box_head:
            box_head[key] = default


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.MODEL.TIMM = CfgNode()
    # Name of a timm model with `features_only` support ("resnet50", "convnext_base",
    # "swin_large_patch4_window12_384"). Not empty: an FPN on it replaces MODEL.BACKBONE.NAME.
    cfg.MODEL.TIMM.NAME = ""
    # Start from timm's pretrained weights. Needs the hub or its cache.
    cfg.MODEL.TIMM.PRETRAINED = True
    # A local weight file (.pth or .safetensors) to use in place of the hub's.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Keep its batch normalisation frozen at the loaded statistics, as detectron2's ResNets do.
    cfg.MODEL.TIMM.FREEZE_BN = True
    # Strides of the feature maps that the FPN is built on.
    cfg.MODEL.TIMM.STRIDES = [4, 8, 16, 32]


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" (detectron2's) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Data type of autocast when SOLVER.AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Exponential moving average of the weights, updated after each optimizer step. When enabled,
    # the average is what gets evaluated.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    # Weight of the old average at each step; early on min(DECAY, (1 + step) / (10 + step)).
    cfg.SOLVER.EMA.DECAY = 0.9998


def _add_data_keys(gal: CfgNode) -> None:
    gal.DATA = CfgNode()
    # Your own data: (annotation JSON, image folder), in LVIS or COCO format. When set, they take
    # the place of DATASETS.TRAIN / DATASETS.TEST, and MODEL.ROI_HEADS.NUM_CLASSES follows.
    gal.DATA.TRAIN = ()
    gal.DATA.VAL = ()
    # Base augmentation: "resize" (detectron2's INPUT.MIN_SIZE_TRAIN rules) or "lsj", large-scale
    # jitter (Ghiasi et al. 2021, "Simple Copy-Paste"), or "none" (images as they are).
    gal.DATA.AUGMENTATION = "lsj"
    # Large-scale jitter: the image is scaled so that it would fit a square of IMAGE_SIZE pixels,
    # times a factor uniform in [MIN_SCALE, MAX_SCALE], then cropped or padded to that square.
    gal.DATA.LSJ = CfgNode()
    gal.DATA.LSJ.IMAGE_SIZE = 640
    gal.DATA.LSJ.MIN_SCALE = 0.1
    gal.DATA.LSJ.MAX_SCALE = 2.0


def _add_copy_paste_keys(gal: CfgNode) -> None:
    gal.POOL = CfgNode()
    # Folder of the instance pool (Arrow shards).
    gal.POOL.ROOT = ""
    # File of the cut-outs that may be pasted (tools/filter_pool.py --allow-list); "": all.
    gal.POOL.ALLOW_LIST = ""
    # Which cut-outs are pasted: a name in POOL_SAMPLER_REGISTRY.
    gal.POOL.SAMPLER = "uniform_class"

    gal.COPY_PASTE = CfgNode()
    gal.COPY_PASTE.ENABLED = False
    # Number of pastes per image: uniform integer in [MIN_PASTES, MAX_PASTES].
    gal.COPY_PASTE.MIN_PASTES = 0
    gal.COPY_PASTE.MAX_PASTES = 19
    # "basic" (hard mask), "feather" (soft alpha edge) or "poisson" (seamless clone).
    gal.COPY_PASTE.BLEND = "basic"
    # Width of the soft edge of "feather", in pixels.
    gal.COPY_PASTE.FEATHER_SIGMA = 1.0
    # A paste's size: sqrt(relative area) ~ Normal(mean, std) of its class in the training set,
    # clipped to [MIN_SIZE px, MAX_RELATIVE_SIZE * image size].
    gal.COPY_PASTE.MIN_SIZE = 10
    gal.COPY_PASTE.MAX_RELATIVE_SIZE = 0.5
    # The aspect ratio is multiplied by a factor uniform in [1 - JITTER, 1 + JITTER].
    gal.COPY_PASTE.ASPECT_JITTER = 0.2
    gal.COPY_PASTE.FLIP_PROB = 0.5
    # An object that a paste occludes stays if more than MIN_VISIBLE_AREA px of it remain visible or
    # no side of its box moved by more than MAX_BOX_SHIFT px; else it is dropped.
    gal.COPY_PASTE.MIN_VISIBLE_AREA = 300
    gal.COPY_PASTE.MAX_BOX_SHIFT = 10
    # Share of the pastes that are cut out of other training images instead of the pool.
    gal.COPY_PASTE.REAL_FRACTION = 0.0


def _add_scorer_keys(gal: CfgNode) -> None:
    gal.SCORER = CfgNode()
    # Score each pasted instance while training, and let GAL.ACCEPT decide which train the heads.
    gal.SCORER.ENABLED = False
    # The heads whose gradients are looked at: "box" (with its classifier), "mask", or both.
    gal.SCORER.HEADS = ["box", "mask"]
    # Combined score = sum of SCORE_WEIGHTS * cosine with the class's direction
    #                - sum of LOSS_WEIGHTS * loss, standardised by recent real instances' losses;
    # one weight per entry of HEADS.
    gal.SCORER.SCORE_WEIGHTS = [1.0, 0.0]
    gal.SCORER.LOSS_WEIGHTS = [0.0, 0.2]
    # k: each layer's per-instance gradient is projected to k x k numbers by two random matrices
    # drawn from SEED.
    gal.SCORER.PROJECTION = 16
    gal.SCORER.SEED = 0
    # Weight of the old average, per real instance, in a class's direction.
    gal.SCORER.MOMENTUM = 0.95
    # A class known from n instances counts n / (n + SHRINKAGE), the mean of its frequency group the
    # rest.
    gal.SCORER.SHRINKAGE = 2.0
    # Classes that each class is contrasted with (0: no contrast), chosen anew every PARTNER_EVERY
    # steps from what its pasted candidates resemble.
    gal.SCORER.NUM_PARTNERS = 4
    gal.SCORER.PARTNER_EVERY = 50
    # Real instances of a class that a step learns from, and relabelled ones in all, per process.
    gal.SCORER.MAX_REAL_PER_CLASS = 4
    gal.SCORER.MAX_COUNTERFACTUALS = 64
    # Every PICTURE_PERIOD steps a picture of accepted and rejected instances; 0: never.
    gal.SCORER.PICTURE_PERIOD = 100


def _add_accept_keys(gal: CfgNode) -> None:
    gal.ACCEPT = CfgNode()
    # "instance": each instance by its own score.
    gal.ACCEPT.UNIT = "instance"
    # "always", "never", "random", "threshold", "quantile", "top_k" or "calibrated".
    gal.ACCEPT.POLICY = "calibrated"
    # "random": probability of acceptance.
    gal.ACCEPT.RATE = 0.5
    # "threshold": the lowest score that is accepted.
    gal.ACCEPT.THRESHOLD = 0.0
    # "top_k": instances accepted per image.
    gal.ACCEPT.TOP_K = 5
    # "calibrated": accept above this percentile of recent real instances' scores of the class.
    gal.ACCEPT.PERCENTILE = 25.0
    # "batch" rules: scores that a percentile is taken of.
    gal.ACCEPT.BATCH_WINDOW = 1000
    # "quantile": share of the last WINDOW scores of a frequency group that is accepted, linear from
    # START_RATE to END_RATE over training, once there are MIN_COUNT.
    gal.ACCEPT.QUANTILE = CfgNode()
    gal.ACCEPT.QUANTILE.START_RATE = 0.5
    gal.ACCEPT.QUANTILE.END_RATE = 0.5
    gal.ACCEPT.QUANTILE.WINDOW = 1000
    gal.ACCEPT.QUANTILE.MIN_COUNT = 30
    # Until real instances of a class came in MIN_AGE steps: "accept", "random" (at RATE) or
    # "reject".
    gal.ACCEPT.WARM_UP = CfgNode()
    gal.ACCEPT.WARM_UP.MIN_AGE = 20
    gal.ACCEPT.WARM_UP.RULE = "accept"
    gal.ACCEPT.WARM_UP.RATE = 0.5
    # Decide on the mean of a cut-out's scores so far, shrunk to its class's mean as if that had
    # been seen PRIOR_COUNT times.
    gal.ACCEPT.EVIDENCE = CfgNode()
    gal.ACCEPT.EVIDENCE.ENABLED = False
    gal.ACCEPT.EVIDENCE.PRIOR_COUNT = 4.0
    # Reject whatever the score if the head's loss exceeds FACTOR times the QUANTILE of recent real
    # instances of the class.
    gal.ACCEPT.VETO = CfgNode()
    gal.ACCEPT.VETO.ENABLED = False
    gal.ACCEPT.VETO.HEAD = "mask"
    gal.ACCEPT.VETO.QUANTILE = 0.95
    gal.ACCEPT.VETO.FACTOR = 1.5
