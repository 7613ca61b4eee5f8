"""The role `paper`: a citation by key. A key that is not in the table warns, and a warning is an error.

In a page, {paper}`RetinaNet` becomes a link to the paper and {paper}`RetinaNet <Sec. 4>` names a place in it.
All papers that a site cites are listed by the directive `papers`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paper:
    """A published work; `arxiv` is its number there, `url` where it is elsewhere."""

    title: str
    authors: str
    year: int
    arxiv: str = ""
    url: str = ""

    @property
    def link(self) -> str:
        """Where it can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url


PAPERS = {
    "ATSS": Paper(
        "Bridging the Gap Between Anchor-based and Anchor-free Detection"
        " via Adaptive Training Sample Selection",
        "Zhang et al.",
        2020,
        "1912.02424",
    ),
    "Bounded IoU": Paper(
        "Improving Object Localization with Fitness NMS and Bounded IoU Loss",
        "Tychsen-Smith and Petersson",
        2018,
        "1711.00164",
    ),
    "Cascade R-CNN": Paper(
        "Cascade R-CNN: Delving into High Quality Object Detection", "Cai and Vasconcelos", 2018, "1712.00726"
    ),
    "Cascade Mask R-CNN": Paper(
        "Cascade R-CNN: High Quality Object Detection and Instance Segmentation",
        "Cai and Vasconcelos",
        2019,
        "1906.09756",
    ),
    "CenterNet": Paper("Objects as Points", "Zhou et al.", 2019, "1904.07850"),
    "COCO": Paper("Microsoft COCO: Common Objects in Context", "Lin et al.", 2014, "1405.0312"),
    "DeepLab": Paper(
        "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
        "Chen et al.",
        2015,
        "1412.7062",
    ),
    "DDP": Paper(
        "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
        "Li et al.",
        2020,
        "2006.15704",
    ),
    "DistBelief": Paper(
        "Large Scale Distributed Deep Networks",
        "Dean et al.",
        2012,
        url="https://papers.nips.cc/paper/2012/hash/6aca97005c68f1206823815f66102863-Abstract.html",
    ),
    "PowerSGD": Paper(
        "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
        "Vogels et al.",
        2019,
        "1905.13727",
    ),
    "Error feedback": Paper(
        "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
        "Karimireddy et al.",
        2019,
        "1901.09847",
    ),
    "FSDP": Paper(
        "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", "Zhao et al.", 2023, "2304.11277"
    ),
    "ZeRO": Paper(
        "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        "Rajbhandari et al.",
        2019,
        "1910.02054",
    ),
    "Asynchrony and momentum": Paper(
        "Asynchrony begets Momentum, with an Application to Deep Learning",
        "Mitliagkas et al.",
        2016,
        "1605.09774",
    ),
    "Synchronous SGD": Paper("Revisiting Distributed Synchronous SGD", "Chen et al.", 2016, "1604.00981"),
    "DCN": Paper("Deformable Convolutional Networks", "Dai et al.", 2017, "1703.06211"),
    "DCNv2": Paper(
        "Deformable ConvNets v2: More Deformable, Better Results", "Zhu et al.", 2018, "1811.11168"
    ),
    "Dynamic R-CNN": Paper(
        "Dynamic R-CNN: Towards High Quality Object Detection via Dynamic Training",
        "Zhang et al.",
        2020,
        "2004.06002",
    ),
    "Fast R-CNN": Paper("Fast R-CNN", "Girshick", 2015, "1504.08083"),
    "Faster R-CNN": Paper(
        "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
        "Ren et al.",
        2015,
        "1506.01497",
    ),
    "FCOS": Paper("FCOS: Fully Convolutional One-Stage Object Detection", "Tian et al.", 2019, "1904.01355"),
    "FPN": Paper("Feature Pyramid Networks for Object Detection", "Lin et al.", 2017, "1612.03144"),
    "GFL": Paper(
        "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes"
        " for Dense Object Detection",
        "Li et al.",
        2020,
        "2006.04388",
    ),
    "GCNet": Paper(
        "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
        "Cao et al.",
        2019,
        "1904.11492",
    ),
    "GIoU": Paper(
        "Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression",
        "Rezatofighi et al.",
        2019,
        "1902.09630",
    ),
    "Group normalisation": Paper("Group Normalization", "Wu and He", 2018, "1803.08494"),
    "Guided anchoring": Paper("Region Proposal by Guided Anchoring", "Wang et al.", 2019, "1901.03278"),
    "HRNet": Paper(
        "Deep High-Resolution Representation Learning for Human Pose Estimation",
        "Sun et al.",
        2019,
        "1902.09212",
    ),
    "HRNetV2p": Paper(
        "High-Resolution Representations for Labeling Pixels and Regions", "Sun et al.", 2019, "1904.04514"
    ),
    "HTC": Paper("Hybrid Task Cascade for Instance Segmentation", "Chen et al.", 2019, "1901.07518"),
    "Large minibatch": Paper(
        "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", "Goyal et al.", 2017, "1706.02677"
    ),
    "Libra R-CNN": Paper(
        "Libra R-CNN: Towards Balanced Learning for Object Detection", "Pang et al.", 2019, "1904.02701"
    ),
    "Mask R-CNN": Paper("Mask R-CNN", "He et al.", 2017, "1703.06870"),
    "In-place batch norm": Paper(
        "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs",
        "Rota Bulò et al.",
        2018,
        "1712.02616",
    ),
    "MegDet": Paper("MegDet: A Large Mini-Batch Object Detector", "Peng et al.", 2018, "1711.07240"),
    "MMDetection": Paper(
        "MMDetection: Open MMLab Detection Toolbox and Benchmark", "Chen et al.", 2019, "1906.07155"
    ),
    "MobileNetV2": Paper(
        "MobileNetV2: Inverted Residuals and Linear Bottlenecks", "Sandler et al.", 2018, "1801.04381"
    ),
    "ParseNet": Paper("ParseNet: Looking Wider to See Better", "Liu et al.", 2015, "1506.04579"),
    "NWD": Paper(
        "A Normalized Gaussian Wasserstein Distance for Tiny Object Detection",
        "Wang et al.",
        2021,
        "2110.13389",
    ),
    "NWD-RKA": Paper(
        "Detecting Tiny Objects in Aerial Images: A Normalized Wasserstein Distance and A New Benchmark",
        "Xu et al.",
        2022,
        "2206.13996",
    ),
    "OHEM": Paper(
        "Training Region-based Object Detectors with Online Hard Example Mining",
        "Shrivastava et al.",
        2016,
        "1604.03540",
    ),
    "PoolFormer": Paper("MetaFormer Is Actually What You Need for Vision", "Yu et al.", 2021, "2111.11418"),
    "Box voting": Paper(
        "Object Detection via a Multi-region & Semantic Segmentation-aware CNN Model",
        "Gidaris and Komodakis",
        2015,
        "1505.01749",
    ),
    "R-FCN": Paper(
        "R-FCN: Object Detection via Region-based Fully Convolutional Networks",
        "Dai et al.",
        2016,
        "1605.06409",
    ),
    "R-CNN": Paper(
        "Rich Feature Hierarchies for Accurate Object Detection and Semantic Segmentation",
        "Girshick et al.",
        2014,
        "1311.2524",
    ),
    "ResNet": Paper("Deep Residual Learning for Image Recognition", "He et al.", 2016, "1512.03385"),
    "ResNeXt": Paper(
        "Aggregated Residual Transformations for Deep Neural Networks", "Xie et al.", 2017, "1611.05431"
    ),
    "Rethinking batch norm": Paper('Rethinking "Batch" in BatchNorm', "Wu and Johnson", 2021, "2105.07576"),
    "RetinaNet": Paper("Focal Loss for Dense Object Detection", "Lin et al.", 2017, "1708.02002"),
    "SimpleDet": Paper(
        "SimpleDet: A Simple and Versatile Distributed Framework"
        " for Object Detection and Instance Recognition",
        "Chen et al.",
        2019,
        "1903.05831",
    ),
    "SSD": Paper("SSD: Single Shot MultiBox Detector", "Liu et al.", 2016, "1512.02325"),
    "Soft-NMS": Paper(
        "Soft-NMS: Improving Object Detection With One Line of Code", "Bodla et al.", 2017, "1704.04503"
    ),
    "Speed/accuracy": Paper(
        "Speed/Accuracy Trade-Offs for Modern Convolutional Object Detectors",
        "Huang et al.",
        2017,
        "1611.10012",
    ),
    "YOLOv3": Paper("YOLOv3: An Incremental Improvement", "Redmon and Farhadi", 2018, "1804.02767"),
    "Sub-linear memory": Paper(
        "Training Deep Nets with Sublinear Memory Cost", "Chen et al.", 2016, "1604.06174"
    ),
    "Weight standardisation": Paper(
        "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        "Qiao et al.",
        2019,
        "1903.10520",
    ),
}


class PaperRole(SphinxRole):
    """`KEY` or `KEY <place in the paper>`."""

    inliner: Inliner

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A link, or a warning for an unknown key."""
        match = re.fullmatch(r"(?P<key>[^<]+?)(?:\s*<(?P<place>[^>]*)>)?", self.text)
        key = match["key"].strip() if match else self.text
        paper = PAPERS.get(key)
        if paper is None:
            logger.warning(
                "unknown paper %r; add it to docs/_ext/papers.py", key, location=self.get_location()
            )
            return [nodes.literal(self.text, self.text)], []
        text = f"{key}, {match['place']}" if match and match["place"] else key
        title = f"{paper.authors}: {paper.title} ({paper.year})"
        return [nodes.reference(text, text, refuri=paper.link, reftitle=title)], []


class PaperList(SphinxDirective):
    """All papers of the table, by key."""

    def run(self) -> list[nodes.Node]:
        """A definition list."""
        items = nodes.definition_list()
        for key, paper in sorted(PAPERS.items(), key=lambda item: item[0].lower()):
            text = nodes.paragraph()
            text += nodes.Text(f"{paper.authors}: ")
            text += nodes.reference(paper.title, paper.title, refuri=paper.link)
            text += nodes.Text(f" ({paper.year})" + (f", arXiv:{paper.arxiv}" if paper.arxiv else ""))
            items += nodes.definition_list_item("", nodes.term("", key), nodes.definition("", text))
        return [items]


def setup(app: Sphinx) -> dict[str, object]:
    """Register role and directive."""
    app.add_role("paper", PaperRole())
    app.add_directive("papers", PaperList)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
