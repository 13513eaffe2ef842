"""Every configuration key that GAL-D2 adds to detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_gal_config(cfg: CfgNode) -> None:
    """Add this project's keys, with their defaults, to a detectron2 config.

    Args:
        cfg: the result of ``detectron2.config.get_cfg()``; changed in place. Keys that another
            project has added before stay, with its values.
    """
    _add_detectron2_head_keys(cfg)
    _add_model_keys(cfg)
    _add_solver_keys(cfg)

    cfg.GAL = CfgNode()
    # Project at Weights & Biases that the run's scalars and pictures are sent to; "": none are.
    cfg.GAL.WANDB = ""
    _add_data_keys(cfg.GAL)
    _add_copy_paste_keys(cfg.GAL)
    _add_generator_keys(cfg.GAL)
    _add_interleaving_keys(cfg.GAL.GENERATOR)
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
    timm = CfgNode()
    # Name of a timm model with `features_only` support ("resnet50", "convnext_base",
    # "swin_large_patch4_window12_384"). Not empty: an FPN on it replaces MODEL.BACKBONE.NAME.
    timm.NAME = ""
    # Start from timm's pretrained weights. Needs the hub or its cache.
    timm.PRETRAINED = True
    # A local weight file (.pth or .safetensors) to use in place of the hub's: timm's, or another
    # port's with the same tensors in the same order.
    timm.WEIGHTS = ""
    # Keep its batch normalisation frozen at the loaded statistics, as detectron2's ResNets do.
    timm.FREEZE_BN = True
    # What comes before the feature map of this stride is not trained, which saves its backward
    # pass; 0: all of the model is.
    timm.FREEZE_STRIDE = 0
    # Strides of the feature maps that the FPN is built on.
    timm.STRIDES = [4, 8, 16, 32]
    # Detic, CenterNet2 and X-Paste have a node of this name, too.
    timm.update(cfg.MODEL.get("TIMM", {}))
    cfg.MODEL.TIMM = timm


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" (detectron2's) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = cfg.SOLVER.get("OPTIMIZER", "SGD")
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
    # the place of DATASETS.TRAIN / DATASETS.TEST, and MODEL.ROI_HEADS.NUM_CLASSES follows. With
    # TRAIN and without VAL there is no evaluation. docs/own_data.md says what is read how.
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
    # Folder of the instance pool (Arrow shards). Empty while GAL.GENERATOR is ENABLED:
    # OUTPUT_DIR/pool.
    gal.POOL.ROOT = ""
    # File of the cut-outs that may be pasted (tools/filter_pool.py --allow-list); "": all.
    gal.POOL.ALLOW_LIST = ""
    # Which cut-outs are pasted: "uniform_class" (class uniform, then cut-out uniform), "posterior"
    # (a class, rare ones more often, then a cut-out by what is known about it), or another name in
    # POOL_SAMPLER_REGISTRY.
    gal.POOL.SAMPLER = "uniform_class"
    # "posterior": CANDIDATES cut-outs of the class are drawn uniformly; one of the BEST of them is
    # pasted, uniformly (one of more of them where most cut-outs help). Their values are drawn from
    # the posterior, whose standard deviations are multiplied by TEMPERATURE at the first step, and
    # by 0 at the last.
    gal.POOL.CANDIDATES = 12
    gal.POOL.BEST = 3
    gal.POOL.TEMPERATURE = 0.7
    # "posterior": a class of n training images is drawn with a weight of n ** -CLASS_POWER; 0: all
    # classes alike.
    gal.POOL.CLASS_POWER = 0.25

    # State that samples depend on (the posterior, a growing pool) changes for them every PERIOD
    # steps, LAG periods late: LAG x PERIOD covers the batches that the loader makes ahead.
    gal.SNAPSHOTS = CfgNode()
    gal.SNAPSHOTS.PERIOD = 100
    gal.SNAPSHOTS.LAG = 1

    gal.POSTERIOR = CfgNode()
    # What is believed of a cut-out, signal by signal: "<head>_score" (cosine with the class's
    # direction), "<head>_loss" (minus the logarithm of its loss), "score" (the scorer's combined
    # one) or "phi" (the raw dot product).
    gal.POSTERIOR.SIGNALS = ["box_score", "box_loss", "mask_loss"]
    # Value = sum over the signals of WEIGHT x quality, the quality in standard deviations of the
    # class's scores, and at most 1 for the loss of a head that does not classify. One weight per
    # entry of SIGNALS.
    gal.POSTERIOR.WEIGHTS = [1.0, 0.5, 0.5]

    gal.LIKENESS = CfgNode()
    # A pretrained network that tells, before anything is pasted, which cut-outs look like real
    # objects of their category rather than of others: the name of a model of timm, or of a CLIP of
    # transformers. Both empty: off.
    gal.LIKENESS.TIMM = ""
    gal.LIKENESS.CLIP = ""
    # Weight file of TIMM; empty: the one that timm downloads.
    gal.LIKENESS.WEIGHTS = ""
    # In a cut-out's value, of the logarithm of the probability that it is what it claims to be.
    gal.LIKENESS.WEIGHT = 1.5

    gal.AUDITION = CfgNode()
    # With the sampler "posterior": images on which cut-outs are scored without training, for each
    # training image, about: the average of a training, of which the first half gets three quarters;
    # 0: no auditions.
    gal.AUDITION.IMAGES = 0.17
    # Steps between two rounds of auditions.
    gal.AUDITION.PERIOD = 100

    gal.COPY_PASTE = CfgNode()
    # Paste cut-outs of GAL.POOL into training images.
    gal.COPY_PASTE.ENABLED = False
    # Number of pastes per image: uniform integer in [MIN_PASTES, MAX_PASTES].
    gal.COPY_PASTE.MIN_PASTES = 0
    gal.COPY_PASTE.MAX_PASTES = 19
    # "basic" (hard mask), "feather" (soft edge, a Gaussian of one pixel) or "poisson" (seamless
    # clone).
    gal.COPY_PASTE.BLEND = "basic"
    # A paste's size: sqrt(relative area) ~ Normal(mean, std) of its class in the training set,
    # clipped to [MIN_SIZE px, MAX_RELATIVE_SIZE * image size].
    gal.COPY_PASTE.MIN_SIZE = 10
    gal.COPY_PASTE.MAX_RELATIVE_SIZE = 0.5
    # The aspect ratio is multiplied by a factor uniform in [1 - JITTER, 1 + JITTER].
    gal.COPY_PASTE.ASPECT_JITTER = 0.2
    # Probability that a cut-out is mirrored.
    gal.COPY_PASTE.FLIP_PROB = 0.5
    # An object that a paste occludes stays if more than MIN_VISIBLE_AREA px of it remain visible or
    # no side of its box moved by more than MAX_BOX_SHIFT px; else it is dropped.
    gal.COPY_PASTE.MIN_VISIBLE_AREA = 300
    gal.COPY_PASTE.MAX_BOX_SHIFT = 10
    # Share of the pastes that are cut out of other training images instead of the pool.
    gal.COPY_PASTE.REAL_FRACTION = 0.0


def _add_generator_keys(gal: CfgNode) -> None:
    gal.GENERATOR = CfgNode()
    # Where new instances come from: a name in GENERATOR_REGISTRY ("stable_diffusion": a
    # text-to-image model; "cutouts": candidates that are there). Empty: disabled.
    gal.GENERATOR.NAME = ""
    # Run seed: image i of a category has a seed mixed of (SEED, category, i).
    gal.GENERATOR.SEED = 0
    # Images to draw of each category by tools/generate_instances.py; the filters keep some of them.
    gal.GENERATOR.PER_CATEGORY = 1000
    # Images of a category that are filtered together; the unit of work that a process takes.
    gal.GENERATOR.UNIT_SIZE = 32
    # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1": of all models of generation.
    gal.GENERATOR.DEVICE = "auto"
    # Of all models of generation: "auto" (float16 on a GPU, else float32), "float16", "bfloat16" or
    # "float32".
    gal.GENERATOR.DTYPE = "auto"
    # Cut-outs reach the pool at least this often, seconds; a killed process loses so much.
    gal.GENERATOR.FLUSH_SECONDS = 300
    # "cutouts": a pool, or a folder with a folder of images for each category.
    gal.GENERATOR.CANDIDATES = ""

    # "stable_diffusion": name on the hub or local folder of a diffusers pipeline with safetensors.
    gal.GENERATOR.MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    # Weight variant ("fp16") to load; empty: the default one.
    gal.GENERATOR.VARIANT = ""
    # Images in a forward pass of any model of generation.
    gal.GENERATOR.BATCH_SIZE = 8
    # Height and width of an image, pixels: a multiple of 8.
    gal.GENERATOR.SIZE = 512
    # Denoising steps: 50 as published; 1-4 for Turbo, LCM and other distilled models.
    gal.GENERATOR.STEPS = 50
    # Classifier-free guidance scale; 0 for Turbo models.
    gal.GENERATOR.GUIDANCE = 7.5
    # What not to draw.
    gal.GENERATOR.NEGATIVE_PROMPT = ""
    # Class name of a diffusers scheduler ("DPMSolverMultistepScheduler"); empty: the model's own.
    gal.GENERATOR.SCHEDULER = ""
    # Drop images that the model's safety checker objects to; a model without one is named in the
    # log.
    gal.GENERATOR.SAFETY_CHECKER = True
    # torch.compile the denoiser, for speed on a GPU; the first batch takes minutes.
    gal.GENERATOR.COMPILE = False

    gal.GENERATOR.PROMPT = CfgNode()
    # Templates that take turns; fields are {name}, {hint} (LVIS's words in parentheses) and
    # {definition}.
    gal.GENERATOR.PROMPT.TEMPLATES = ["a photo of a single {name}"]
    # YAML or JSON file, category -> list of templates, for categories that want their own.
    gal.GENERATOR.PROMPT.FILE = ""

    _add_segmenter_keys(gal.GENERATOR)
    _add_filter_keys(gal.GENERATOR)


def _add_interleaving_keys(generator: CfgNode) -> None:
    # Draw new instances while training, and paste them.
    generator.ENABLED = False
    # "sync": training waits while BATCH images are drawn. "async": a process of its own draws, on
    # DEVICE, and training takes in what is there.
    generator.MODE = "sync"
    # Every PERIOD steps, and before the first, images are drawn ("sync") or taken in ("async").
    # They are available from the next snapshot (GAL.SNAPSHOTS).
    generator.PERIOD = 100
    # Images asked for at a time.
    generator.BATCH = 16
    # While so many new cut-outs were never pasted, no more are drawn; 0: no limit.
    generator.MAX_WAITING = 1000

    generator.SCHEDULE = CfgNode()
    # What is drawn: "adaptive" (categories and templates whose new instances training accepts, rare
    # ones first), "inverse_frequency" or "uniform".
    generator.SCHEDULE.NAME = "adaptive"
    # A category with n training images (and accepted instances, if adaptive) counts n ** -POWER.
    generator.SCHEDULE.POWER = 1.0
    # Folder of the ledger of an earlier training with this pool, to begin with what it found out.
    generator.SCHEDULE.LEDGER = ""


def _add_segmenter_keys(generator: CfgNode) -> None:
    generator.SEGMENTER = CfgNode()
    # Any of "rembg", "clipseg", "sam"; of several, the mask with the best CLIP score is taken.
    generator.SEGMENTER.NAMES = ["rembg"]
    generator.SEGMENTER.REMBG = CfgNode()
    # rembg's models; each is a segmenter of its own.
    generator.SEGMENTER.REMBG.MODELS = ["isnet-general-use"]
    # An ONNX file in place of the one that rembg downloads: a U2-Net (MODELS: ["u2net_custom"]) or
    # IS-Net (["dis_custom"]).
    generator.SEGMENTER.REMBG.FILE = ""
    generator.SEGMENTER.CLIPSEG = CfgNode()
    # Hub name or local folder.
    generator.SEGMENTER.CLIPSEG.MODEL = "CIDAS/clipseg-rd64-refined"
    generator.SEGMENTER.SAM = CfgNode()
    # Hub name or local folder.
    generator.SEGMENTER.SAM.MODEL = "facebook/sam-vit-base"


def _add_filter_keys(generator: CfgNode) -> None:
    generator.FILTER = CfgNode()
    # In this order: "area", "truncation", "clip_text", "clip_image", "vlm".
    generator.FILTER.NAMES = ["area", "truncation", "clip_text"]
    # Share of the image that the object covers.
    generator.FILTER.AREA = CfgNode()
    generator.FILTER.AREA.MIN = 0.05
    generator.FILTER.AREA.MAX = 0.95
    # Largest share of the object's outline that may lie on the image's border.
    generator.FILTER.TRUNCATION = CfgNode()
    generator.FILTER.TRUNCATION.MAX = 0.05
    # CLIP, for both filters below and the choice between masks: hub name or local folder.
    generator.FILTER.CLIP = CfgNode()
    generator.FILTER.CLIP.MODEL = "openai/clip-vit-large-patch14"
    # Lowest cosine of the cut-out with "a photo of a single {name}". Where the best of four or more
    # images that are filtered together is lower, those that come close to it pass as well.
    generator.FILTER.CLIP_TEXT = CfgNode()
    generator.FILTER.CLIP_TEXT.MIN = 0.21
    # Lowest mean cosine with the largest real objects of the category.
    generator.FILTER.CLIP_IMAGE = CfgNode()
    generator.FILTER.CLIP_IMAGE.MIN = 0.6
    # Lowest probability of "yes" against "no" that a vision-language model (hub name or local
    # folder) gives to the question.
    generator.FILTER.VLM = CfgNode()
    generator.FILTER.VLM.MODEL = "HuggingFaceTB/SmolVLM-500M-Instruct"
    generator.FILTER.VLM.MIN = 0.5
    generator.FILTER.VLM.QUESTION = (
        "Is this one whole {name}{definition}, and nothing else? Answer yes or no."
    )


def _add_scorer_keys(gal: CfgNode) -> None:
    gal.SCORER = CfgNode()
    # Score each pasted instance while training, and let GAL.ACCEPT decide which train the heads.
    gal.SCORER.ENABLED = False
    # The heads that are asked: "box" (with its classifier), "mask", or others that are registered
    # (docs/your_model.md).
    gal.SCORER.HEADS = ["box", "mask"]
    # Combined score = sum of SCORE_WEIGHTS * cosine with the class's direction
    #                - sum of LOSS_WEIGHTS * how far the loss exceeds recent real instances' losses,
    # in their standard deviations; one weight per entry of HEADS.
    gal.SCORER.SCORE_WEIGHTS = [1.0, 0.0]
    gal.SCORER.LOSS_WEIGHTS = [0.1, 0.2]
    # Heads whose gradients are taken: "needed", those whose cosine has a weight above or is one of
    # GAL.POSTERIOR.SIGNALS ("phi" there: all), or "all". Of another head there is the loss, which
    # needs no backward pass. The ledger's phi is a sum over these heads.
    gal.SCORER.GRADIENTS = "needed"
    # k: each layer's per-instance gradient is projected to k x k numbers by two random matrices
    # drawn from SEED.
    gal.SCORER.PROJECTION = 16
    gal.SCORER.SEED = 0
    # Weight of the old average, per real instance, in a class's direction.
    gal.SCORER.MOMENTUM = 0.98
    # Classes that each class is contrasted with (0: no contrast), chosen anew every 50 steps from
    # what its pasted candidates resemble.
    gal.SCORER.NUM_PARTNERS = 4
    # Every PERIOD-th step is scored and learnt from; pastes of the others stand in the ledger
    # without scores. Above 1 only where no decision waits for a score (GAL.ACCEPT.POLICY "always"),
    # and with TARGET "train".
    gal.SCORER.PERIOD = 1
    # Real instances that the scorer learns from: "train", those of the training batch, or "probe",
    # those of held-out real images of the pasted classes.
    gal.SCORER.TARGET = "train"
    # Also where UNIT "batch" takes its real images from. FRACTION of each class's training images
    # are held out, chosen by SEED; 0: none, the probe is drawn from the training images.
    gal.SCORER.PROBE = CfgNode()
    gal.SCORER.PROBE.FRACTION = 0.05
    # Probe images for each training image with pastes.
    gal.SCORER.PROBE.IMAGES = 1
    # Every PICTURE_PERIOD steps a picture of accepted and rejected instances; 0: never.
    gal.SCORER.PICTURE_PERIOD = 100


def _add_accept_keys(gal: CfgNode) -> None:
    gal.ACCEPT = CfgNode()
    # "instance": each instance by its own score. "batch": all or none of a step's, by the cosine of
    # the whole model's gradients on real images and on the pasted instances (arXiv 2406.02435).
    gal.ACCEPT.UNIT = "instance"
    # "always", "never", "random" or "quantile"; with UNIT "batch": "threshold" or "percentile".
    gal.ACCEPT.POLICY = "always"
    # "random": probability of acceptance. "quantile": share of the last 1,000 values of a frequency
    # group that is accepted.
    gal.ACCEPT.RATE = 0.5
    # "threshold": the lowest cosine of a batch that is accepted; the paper's is -0.05.
    gal.ACCEPT.THRESHOLD = 0.0
    # "percentile": accept a batch above this percentile of the last 1,000 steps' cosines, 0-100.
    gal.ACCEPT.PERCENTILE = 35.0
    # UNIT "batch": weight of the old average in the cached gradient on real images.
    gal.ACCEPT.BATCH_MOMENTUM = 0.1
    # Until real instances of a class came in MIN_AGE steps, its scores are not remembered, and RULE
    # ("accept" or "reject") takes the place of a policy that needs them.
    gal.ACCEPT.WARM_UP = CfgNode()
    gal.ACCEPT.WARM_UP.MIN_AGE = 20
    gal.ACCEPT.WARM_UP.RULE = "accept"
