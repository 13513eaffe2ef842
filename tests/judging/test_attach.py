"""Detectors of others: they are scored as they are, or refused in a sentence that names what."""

from __future__ import annotations

import copy
import json
import re
import types

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import StandardROIHeads, build_roi_heads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.events import EventStorage
from other_heads import (
    CosinePredictor,
    FocalPredictor,
    NormalisedLinear,
    PromptedCascade,
    SecretiveFederatedPredictor,
    TellingFocalPredictor,
    TwoPredictorHeads,
    WithoutBackground,
    federated_probabilities,
    focal_losses,
)
from torch import nn
from torch.nn import functional as F

import gal_d2
from gal_d2.config import add_gal_config
from gal_d2.datasets.registration import load_metadata, register_instances
from gal_d2.errors import UserError
from gal_d2.judging.attach import attach_judge
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.judging.judge import class_groups
from gal_d2.modeling.roi_heads import GALROIHeads
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.roi_losses import HEAD_LOSS_REGISTRY, build_head_losses
from gal_d2.scoring.rois import RoiBatch
from gal_d2.scoring.scorer import ContributionScorer
from gal_d2.selection.policies import AlwaysAccept
from gal_d2.selection.posterior import Posterior

NUM_CLASSES, SIDE, DATASET = 5, 64, "other_heads"
SHAPES = {"p2": ShapeSpec(channels=6, stride=4)}
GT_BOXES = torch.tensor([[2.0, 2.0, 26.0, 26.0], [34.0, 34.0, 60.0, 62.0], [2.0, 36.0, 24.0, 60.0]])


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory):
    """Five categories of one image."""
    path = tmp_path_factory.mktemp("other") / "train.json"
    categories = [
        {"id": k + 1, "name": f"thing {k}", "frequency": "f", "image_count": 200}
        for k in range(NUM_CLASSES)
    ]
    image = {"id": 1, "file_name": "1.png", "width": SIDE, "height": SIDE}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400}
    box["segmentation"] = [[2, 2, 22, 2, 22, 22, 2, 22]]
    path.write_text(json.dumps({"categories": categories, "images": [image], "annotations": [box]}))
    register_instances(DATASET, path, path.parent)
    yield
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)

    def output_shape(self):
        return SHAPES


class Detector(nn.Module):
    """What attach asks of a detector, and no more."""

    def __init__(self, cfg) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone()
        self.roi_heads = build_roi_heads(cfg, SHAPES)
        for name, parameter in self.roi_heads.named_parameters():
            if "predictor" in name:  # detectron2's are almost constant at first
                parameter.data.add_(torch.randn_like(parameter) * 0.1)


def make_config(tmp_path, *options):
    cfg = get_cfg()
    add_gal_config(cfg)
    model = cfg.MODEL
    model.MASK_ON = True
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p2"]
    model.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    model.ROI_BOX_HEAD.NUM_FC = 1
    model.ROI_BOX_HEAD.FC_DIM = 12
    model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 6
    model.ROI_MASK_HEAD.NUM_CONV = 1
    model.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.GAL.SCORER.ENABLED = cfg.GAL.COPY_PASTE.ENABLED = True
    cfg.merge_from_list(list(options))
    return cfg


def make_detector(tmp_path, *options):
    cfg = make_config(tmp_path, *options)
    return Detector(cfg).train(), cfg


def with_predictor(tmp_path, predictor, *options):
    """StandardROIHeads of a user who put another predictor in."""
    model, cfg = make_detector(tmp_path, *options)
    model.roi_heads.box_predictor = predictor(cfg, model.roi_heads.box_head.output_shape)
    return model, cfg


def polygons(boxes):
    corners = [(x0, y0, x1, y0, x1, y1, x0, y1) for x0, y0, x1, y1 in boxes.tolist()]
    return PolygonMasks([[torch.tensor(c, dtype=torch.float64).numpy()] for c in corners])


def make_target(masks: type = BitMasks) -> Instances:
    gt_masks = polygons(GT_BOXES)
    if masks is BitMasks:
        gt_masks = BitMasks.from_polygon_masks(gt_masks, SIDE, SIDE)
    return Instances(
        (SIDE, SIDE),
        gt_boxes=Boxes(GT_BOXES.clone()),
        gt_classes=torch.tensor([0, 1, 2]),
        gt_masks=gt_masks,
        instance_source=torch.tensor([0, 1, 1]),
        pool_id=torch.tensor([-1, 7, 8]),
    )


def make_proposals() -> Instances:
    generator = torch.Generator().manual_seed(0)
    boxes = (GT_BOXES + torch.randn(10, 3, 4, generator=generator) * 3).reshape(-1, 4)
    corners = torch.rand(20, 2, generator=generator) * 40
    boxes = torch.cat([boxes, torch.cat([corners, corners + 20], dim=1)]).clamp(0, SIDE)
    return Instances(
        (SIDE, SIDE), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes))
    )


def make_features():
    return {"p2": torch.randn(1, 6, 16, 16, generator=torch.Generator().manual_seed(1))}


def step(model, judge=None, target=None, **arguments):
    """A forward pass of the heads in training, announced to the judge; the losses."""
    if judge is not None:
        judge.start_step(0, [{"image_id": 1}])
    images = ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)])
    target = make_target() if target is None else target
    with EventStorage():
        torch.manual_seed(2)
        _, losses = model.roi_heads(
            images, make_features(), [make_proposals()], [target], **arguments
        )
    if judge is not None:
        judge.finish_step()
    return losses


CASCADE = ("MODEL.ROI_HEADS.NAME", "PromptedCascade")
AGNOSTIC = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True")


@pytest.mark.parametrize(
    "options",
    [(), CASCADE, AGNOSTIC, ("MODEL.ROI_HEADS.NAME", "TwoPredictorHeads")],
    ids=["standard", "cascade", "agnostic", "two predictors"],
)
def test_heads_of_others_are_scored_and_keep_what_they_have(tmp_path, options):
    model, cfg = make_detector(tmp_path, *options)
    cls, predictor = type(model.roi_heads), model.roi_heads.box_predictor
    names = list(model.state_dict())
    before = step(copy.deepcopy(model))
    judge = gal_d2.attach(model, cfg)
    assert isinstance(model.roi_heads, cls) and type(model.roi_heads).__name__ == cls.__name__
    assert model.roi_heads.box_predictor is predictor and list(model.state_dict()) == names
    losses = step(model, judge)
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in before.items()}
    scores = judge.judged.contribution
    assert scores.pool_id.tolist() == [7, 8] and (scores.head_loss["box"] > 0).all()
    step(model, judge)  # the real object of step 0 has given class 0 a direction
    assert judge.scorer.cache.num_updates[0] == 2
    sum(losses.values()).backward()


def test_arguments_of_their_own_reach_the_heads(tmp_path):
    model, cfg = make_detector(tmp_path, *CASCADE)
    judge = gal_d2.attach(model, cfg)
    step(model, judge, ann_type="box", prompt="a bun")
    assert model.roi_heads.prompts == ("box", "a bun")
    assert isinstance(copy.deepcopy(model).roi_heads, PromptedCascade)


@pytest.mark.parametrize("name", ["PromptedCascade", "CascadeROIHeads", "StandardROIHeads"])
def test_rejected_objects_train_no_stage(tmp_path, monkeypatch, name):
    model, cfg = make_detector(tmp_path, "MODEL.ROI_HEADS.NAME", name)
    gal_d2.attach(model, cfg)
    predictors = model.roi_heads.box_predictor
    predictors = predictors if isinstance(predictors, nn.ModuleList) else [predictors]
    seen = []
    cls = type(predictors[0])  # of all stages
    original = cls.losses

    def losses(self, predictions, proposals, **arguments):
        seen.append(proposals[0])
        return original(self, predictions, proposals, **arguments)

    monkeypatch.setattr(cls, "losses", losses)
    model.roi_heads.judge = lambda *_: [torch.tensor([False, True, False])]
    step(model)
    assert len(seen) == len(predictors)
    for rois, threshold in zip(seen, (0.5, 0.6, 0.7), strict=False):
        assert not {1, -1} & set(rois.gt_classes.tolist())
        overlap = pairwise_iou(rois.proposal_boxes, Boxes(GT_BOXES[1:2]))
        assert (overlap < threshold).all()  # it is gone, and no background either
        assert {0, 2} <= set(rois.gt_classes.tolist())
    # Nothing of the guard stays.
    assert not any("losses" in vars(module) for module in model.modules())


def test_boxes_that_are_matched_elsewhere_are_refused_once_something_is_rejected(tmp_path):
    model, cfg = make_detector(tmp_path, "MODEL.ROI_HEADS.NAME", "RematchingHeads")
    judge = gal_d2.attach(model, cfg)
    step(model, judge)
    model.roi_heads.judge = lambda *_: [torch.tensor([False, True, False])]
    with pytest.raises(UserError, match="RematchingHeads label boxes with a rejected object"):
        step(model)
    assert not model.roi_heads._ignores


def explicit_loss(roi_heads, pooled, classes):
    """(R,) the box loss of the two-predictor heads and of the cascade, written out."""
    heads, predictors = roi_heads.box_head, roi_heads.box_predictor
    heads = heads if isinstance(heads, nn.ModuleList) else [heads] * len(predictors)
    total = 0.0
    for head, predictor in zip(heads, predictors, strict=True):
        logits = predictor(head(pooled))[0]
        if type(predictor) is FastRCNNOutputLayers:
            total = total + F.cross_entropy(logits, classes, reduction="none")
            continue
        target = F.one_hot(classes, NUM_CLASSES).float()
        weight = torch.maximum(target, federated_probabilities(predictor))
        logits = logits[:, :NUM_CLASSES]
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        total = total + (weight * loss).sum(1)
    return total


@pytest.mark.parametrize("name", ["PromptedCascade", "TwoPredictorHeads"])
def test_gradients_agree_with_autograd(tmp_path, name):
    model, _ = make_detector(tmp_path, "MODEL.ROI_HEADS.NAME", name)
    gradients = ProjectedGradients(model.roi_heads, ["box"], k=None)
    target = make_target()
    rois, classes = RoiBatch([target.gt_boxes], [target.gt_masks]), target.gt_classes
    result = gradients("box", make_features(), rois, classes)
    loss = build_head_losses(model.roi_heads, ["box"])["box"]
    expected = explicit_loss(model.roi_heads, loss.pool(make_features(), rois), classes)
    torch.testing.assert_close(result.loss, expected.detach())
    layers = loss.layers()
    weights = [layer.weight for layer in layers.values()]
    assert not any("bbox_pred" in layer for layer in layers)
    for row, value in enumerate(expected):
        grads = torch.autograd.grad(value, weights, retain_graph=True)
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.testing.assert_close(result.gradient[row], flat, rtol=1e-4, atol=1e-6)


def test_a_predictor_supplies_its_losses(tmp_path, caplog):
    model, cfg = with_predictor(
        tmp_path, TellingFocalPredictor, "GAL.SCORER.HEADS", "['box','mask']"
    )
    judge = gal_d2.attach(model, cfg)
    step(model, judge)
    loss = judge.scorer.gradients.head_losses["box"]
    target = make_target()
    with torch.no_grad():
        pooled = loss.pool(make_features(), RoiBatch([target.gt_boxes[1:]]))
        logits = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))[0]
    expected = focal_losses(logits, target.gt_classes[1:])
    torch.testing.assert_close(judge.judged.contribution.head_loss["box"], expected)
    assert "roi_losses" not in caplog.text


@pytest.mark.parametrize(
    ("predictor", "words"),
    [
        (FocalPredictor, "FocalPredictor to be softmax cross entropy, and it is another"),
        (CosinePredictor, r"leaves out box_predictor.cls_score \(NormalisedLinear\)"),
    ],
)
def test_what_is_taken_for_something_else_is_named(tmp_path, caplog, predictor, words):
    model, cfg = with_predictor(tmp_path, predictor)
    state = torch.random.get_rng_state()
    gal_d2.attach(model, cfg)
    assert re.search(words, caplog.text)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("predictor", "words"),
    [
        (
            SecretiveFederatedPredictor,
            "SecretiveFederatedPredictor has use_fed_loss but no fed_loss_cls_weights.*roi_losses",
        ),
        (WithoutBackground, "WithoutBackground gives 5 logits for 5 classes"),
    ],
)
def test_predictors_that_cannot_be_scored(tmp_path, predictor, words):
    model, cfg = with_predictor(tmp_path, predictor)
    with pytest.raises(UserError, match=words):
        gal_d2.attach(model, cfg)


def test_a_head_without_any_layer_of_its_own_is_refused(tmp_path):
    class Alone(CosinePredictor):
        def forward(self, x):
            return self.cls_score(x.flatten(1)), x.new_zeros(len(x), 4)

    model, cfg = with_predictor(
        tmp_path,
        Alone,
        *("GAL.SCORER.HEADS", "['box']", "GAL.SCORER.SCORE_WEIGHTS", "[1.0]"),
        *("GAL.SCORER.LOSS_WEIGHTS", "[0.0]", "GAL.POSTERIOR.SIGNALS", "['box_score']"),
        *("GAL.POSTERIOR.WEIGHTS", "[1.0]"),
    )
    model.roi_heads.box_head = nn.Flatten()
    model.roi_heads.box_predictor.cls_score = NormalisedLinear(6 * 16, NUM_CLASSES + 1, bias=False)
    with pytest.raises(UserError, match=r"'box'.*calls none of its layers.*NormalisedLinear"):
        gal_d2.attach(model, cfg)


def test_code_that_fails_on_two_regions_is_named(tmp_path):
    class Demanding(FastRCNNOutputLayers):
        def forward(self, x, text):
            return super().forward(x)

    model, cfg = with_predictor(tmp_path, Demanding)
    words = r"head 'box' of StandardROIHeads \(.*Demanding\) cannot be scored: TypeError.*'text'"
    with pytest.raises(UserError, match=words):
        gal_d2.attach(model, cfg)


POINT_HEAD = (
    *("MODEL.ROI_MASK_HEAD.NAME", "PointMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
)


def test_a_mask_head_that_pools_itself_is_refused_by_name(tmp_path):
    model, cfg = make_detector(tmp_path, *POINT_HEAD)
    with pytest.raises(
        UserError, match=r"'mask', but its mask head PointMaskHead has no.*are: box"
    ):
        gal_d2.attach(model, cfg)


def document_code(repository) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (repository / "docs/your_model.md").read_text(), re.S)


@pytest.fixture(scope="module")
def document(repository):
    """What the code blocks of docs/your_model.md define; each is run once."""
    names = types.SimpleNamespace(__name__="my_project").__dict__
    for code in document_code(repository):
        exec(code, names)
    yield types.SimpleNamespace(**names)
    del HEAD_LOSS_REGISTRY._obj_map["coarse_mask"]


def test_the_document_s_heads_are_scored(tmp_path, document, caplog):
    model, cfg = make_detector(tmp_path, "MODEL.ROI_HEADS.NAME", "SmoothedROIHeads")
    judge = gal_d2.attach(model, cfg)
    step(model, judge)
    assert isinstance(model.roi_heads.box_predictor, document.SmoothedPredictor)
    assert "roi_losses" not in caplog.text
    assert (judge.judged.contribution.head_loss["box"] > 0).all()


def test_the_document_s_head_loss_is_one_class(tmp_path, document):
    model, cfg = make_detector(
        tmp_path,
        *POINT_HEAD,
        *("GAL.SCORER.HEADS", "['box', 'coarse_mask']"),
        *("GAL.POSTERIOR.SIGNALS", "['box_score', 'box_loss', 'coarse_mask_loss']"),
    )
    judge = gal_d2.attach(model, cfg)
    step(model, judge)
    contribution = judge.judged.contribution
    assert set(contribution.head_loss) == {"box", "coarse_mask"}
    assert (contribution.head_loss["coarse_mask"] > 0).all()
    assert judge.scorer.cache.contrast_heads == ("box",)


def test_the_document_s_loop_trains(tmp_path, document):
    model, cfg = make_detector(tmp_path, "MODEL.ROI_HEADS.NAME", "SmoothedROIHeads")

    def forward(batch):
        return step(model, target=batch[0]["instances"])

    model.forward = forward
    batches = [[{"image_id": 1, "instances": make_target()}]] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    judge = document.train(model, cfg, batches, optimizer)
    assert judge.step == 1 and list((tmp_path / "ledger").iterdir())


def test_the_document_s_config_keys_are_added(document):
    cfg = get_cfg()
    document.add_my_config(cfg)
    add_gal_config(cfg)
    assert cfg.MODEL.ROI_HEADS.MY_OPTION == 1


def test_heads_that_never_ask_are_found_out(tmp_path):
    class Deaf(GALROIHeads):
        def forward(self, images, features, proposals, targets=None):
            return [], {}

    model, cfg = make_detector(tmp_path)
    model.roi_heads.__class__ = Deaf
    judge = gal_d2.attach(model, cfg)
    step(model, judge)
    with pytest.raises(UserError, match="Deaf did not ask the judge"):
        step(model, judge)


def test_other_arguments_are_refused(tmp_path):
    class Reversed(StandardROIHeads):
        def forward(self, features, images):
            return {}

    model, cfg = make_detector(tmp_path)
    model.roi_heads.__class__ = Reversed
    with pytest.raises(UserError, match=r"Reversed have forward\(features, images\).*targets"):
        gal_d2.attach(model, cfg)


def test_a_detector_without_roi_heads_is_told_what_fits(tmp_path):
    class RetinaNet(nn.Module):
        backbone = Backbone()

    with pytest.raises(UserError, match="a RetinaNet .*GeneralizedRCNN.*GAL.SCORER.ENABLED False"):
        gal_d2.attach(RetinaNet(), make_config(tmp_path))
    cfg = make_config(tmp_path, "GAL.SCORER.ENABLED", "False")
    assert gal_d2.attach(RetinaNet(), cfg) is None


@pytest.mark.skipif(
    hasattr(FastRCNNOutputLayers, "sigmoid_cross_entropy_loss"), reason="detectron2 knows it"
)
def test_a_predictor_that_ignores_the_config_is_refused(tmp_path):
    model, cfg = make_detector(tmp_path, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True")
    with pytest.raises(UserError, match="USE_SIGMOID_CE is on, but .*FastRCNNOutputLayers"):
        gal_d2.attach(model, cfg)


def test_batch_recipe_refuses_a_cascade_with_steps_of_its_own(tmp_path):
    model, cfg = make_detector(
        tmp_path, *CASCADE, "GAL.ACCEPT.UNIT", "batch", "GAL.ACCEPT.POLICY", "threshold"
    )
    with pytest.raises(UserError, match="not with Detector with PromptedCascade.*instance"):
        gal_d2.attach(model, cfg)


def test_polygons_score_as_bit_masks(tmp_path):
    contributions = []
    for kind in (BitMasks, PolygonMasks):
        model, cfg = make_detector(tmp_path / kind.__name__)
        judge = gal_d2.attach(model, cfg)
        step(model, judge, make_target(kind))
        contributions.append(judge.judged.contribution)
    bits, polygon = contributions
    torch.testing.assert_close(polygon.head_loss["box"], bits.head_loss["box"])
    # A box's mask, cropped to the box, is full in either form.
    torch.testing.assert_close(polygon.head_loss["mask"], bits.head_loss["mask"], rtol=0.05, atol=0)
    assert polygon.area.tolist() == [26 * 28, 22 * 24]


def test_a_judge_is_made_without_a_config(tmp_path):
    model, _ = make_detector(tmp_path)
    metadata = load_metadata(DATASET)
    judge = InstanceJudge(
        roi_heads=model.roi_heads,
        scorer=ContributionScorer(model.roi_heads, class_groups=class_groups(metadata)),
        policy=AlwaysAccept(),
        posterior=Posterior(NUM_CLASSES, ["box_score"]),
        metadata=metadata,
        output_dir=tmp_path,
    )
    attach_judge(model, judge)
    step(model, judge)
    assert judge.judged.contribution.pool_id.tolist() == [7, 8]
    assert judge.posterior.get(judge.judged.contribution.pool_id.numpy()).count.shape == (2,)


def test_a_node_of_the_same_name_is_shared():
    cfg = get_cfg()
    cfg.MODEL.TIMM = type(cfg)({"BASE_NAME": "resnet50", "PRETRAINED": False})
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    add_gal_config(cfg)
    assert cfg.MODEL.TIMM.BASE_NAME == "resnet50" and cfg.MODEL.TIMM.PRETRAINED is False
    assert cfg.MODEL.TIMM.NAME == "" and cfg.SOLVER.OPTIMIZER == "ADAMW"


def test_several_predictors_are_one_head(tmp_path):
    model, _ = make_detector(tmp_path, "MODEL.ROI_HEADS.NAME", "TwoPredictorHeads")
    assert isinstance(model.roi_heads, TwoPredictorHeads)
    layers = build_head_losses(model.roi_heads, ["box"])["box"].layers()
    assert [n for n in layers if n.startswith("box_predictor")] == [
        "box_predictor.0.cls_score",
        "box_predictor.1.cls_score",
    ]
