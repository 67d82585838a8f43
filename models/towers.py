"""A model is two towers from one configuration: open_clip's own, any timm backbone, and two small ones of ours; or a classifier.

`ModelConfig.vision` and `.text` are the fields of open_clip's `CLIPVisionCfg` and `CLIPTextCfg`, so that every open_clip model
can be written as one of ours. Two additions: timm knows `sightline_conv` (below), and `text={"bag_of_words": true, ...}`
builds `text.BagOfWords`. The logit scale has shape [1], because FSDP cannot shard scalars. A configuration without a text tower
(`text={}`) is a `classifier.Classifier`, whose `.vision` is a timm name and that architecture's options; with
`text={"predicts": "words" or "captions", ...}` it is one of the baselines in `predictive.py`; with `dense` it is an `lseg.Lseg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, TypeAlias

import open_clip
from timm.models import register_model
from torch import Tensor, nn

from sightline.models import cct, ladder  # noqa: F401 - timm learns their names
from sightline.models.classifier import Classifier, freeze_batch_norms
from sightline.models.lseg import DenseHead, Lseg, Residual
from sightline.models.predictive import build_predictor
from sightline.models.preprocess import Preprocess
from sightline.models.text import OPEN_CLIP_BPE, BagOfWords
from sightline.models.zeroshot import PLAIN_TEMPLATES

# Both towers and the logit scale, or a `Classifier` or a `Predictor`. open_clip has no types, so this is Any to a type checker.
Towers: TypeAlias = open_clip.CustomTextCLIP


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the function which a model computes, apart from its weights.

    Attributes:
        embed_dim: D, the dimension of the joint embedding space; of a classifier, the width of its head's hidden layer, 0 for none.
        vision, text: open_clip's tower configurations (`CLIPVisionCfg`, `CLIPTextCfg` fields); no `text` makes a classifier.
        preprocess: how images become input.
        tokenizer: name of the tokenizer, see `text.get_tokenizer`.
        templates: default prompts for zero-shot use.
        init_logit_scale: initial log of the inverse temperature (CLIP: log(1/0.07)).
        init_logit_bias: initial bias of all logits, for the sigmoid loss (SigLIP: -10); None for none.
        pretrained_image: what the image tower starts from, any source of `interchange/load_weights.py`: an artifact, a file or
            folder of timm or open_clip, a name; "" trains from scratch.
        pretrained: what both towers and the logit scale start from: an artifact or a checkpoint of open_clip, likewise.
        pretrained_image_sha256, pretrained_sha256: their digests, filled in when a run is resolved.
        pretrained_text: what the text tower of a model with a dense head is, by the same sources; it is frozen.
        pretrained_text_sha256: its digest, likewise.
        dense: a decoder for segmentation on top of both towers; None for none.
        quick_gelu: the towers compute x·sigmoid(1.702 x) for the GELU, as OpenAI's and some others of open_clip's do.
        lock_image: keep the trunk as loaded and train only its projection (LiT, Zhai et al. 2022).
        classes: what a classifier's logits stand for; filled in from the corpus when a run is resolved, where they are not given.
    """

    embed_dim: int
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    preprocess: Preprocess
    tokenizer: str = OPEN_CLIP_BPE
    templates: tuple[str, ...] = PLAIN_TEMPLATES
    init_logit_scale: float = log(1 / 0.07)
    init_logit_bias: float | None = None
    pretrained_image: str = ""
    pretrained_image_sha256: str = ""
    pretrained: str = ""
    pretrained_sha256: str = ""
    quick_gelu: bool = False
    lock_image: bool = False
    pretrained_text: str = ""
    pretrained_text_sha256: str = ""
    dense: DenseHead | None = None
    classes: tuple[str, ...] = ()

    @property
    def is_classifier(self) -> bool:
        return not self.text

    @property
    def keeps_features(self) -> bool:
        """Whether images go through a locked tower once a run; a decoder that looks at pixels has it beside it in each step."""
        return self.lock_image and not (self.dense and self.dense.pixels)

    @property
    def is_predictor(self) -> bool:
        return "predicts" in self.text

    @property
    def image_is_given(self) -> bool:
        """Whether the image tower starts from somebody's weights."""
        return bool(self.pretrained_image or self.pretrained)

    @property
    def context_length(self) -> int:
        return int(self.text.get("context_length", 77))


def build(config: ModelConfig) -> Towers:
    """The towers with random weights, drawn from torch's current generator.

    Raises:
        ValueError: open_clip or timm do not know a setting of the configuration.
    """
    if config.is_classifier:
        classifier = Classifier(config.vision, size=config.preprocess.size, classes=len(config.classes), hidden=config.embed_dim)
        return freeze_batch_norms(classifier) if config.image_is_given else classifier
    text = dict(config.text)
    bag_of_words = text.pop("bag_of_words", False)
    unused = bag_of_words or config.is_predictor
    try:
        towers = open_clip.CustomTextCLIP(
            embed_dim=config.embed_dim,
            vision_cfg=dict(config.vision),
            text_cfg={"layers": 1, "width": 64, "heads": 1, "vocab_size": 1} if unused else text,
            quick_gelu=config.quick_gelu,
            init_logit_scale=config.init_logit_scale,
            init_logit_bias=config.init_logit_bias,
            nonscalar_logit_scale=True,
        )
    except (TypeError, ValueError, LookupError, AssertionError, ArithmeticError, RuntimeError) as error:  # whatever a tower says
        raise ValueError(f"these towers cannot be built: {error}") from error
    if config.is_predictor:
        towers = build_predictor(towers.visual, config.embed_dim, text)
    if bag_of_words:
        towers.text = BagOfWords(width=text["width"], output_dim=config.embed_dim, context_length=config.context_length)
        towers.context_length, towers.vocab_size = towers.text.context_length, towers.text.vocab_size
    if config.image_is_given:
        towers.visual = freeze_batch_norms(towers.visual)
    if config.dense is None:
        return towers
    trunk: Any = getattr(towers.visual, "trunk", None)
    size = (config.preprocess.size, config.preprocess.size)
    if hasattr(trunk, "set_input_size") and getattr(trunk.patch_embed, "img_size", size) != size:
        trunk.set_input_size(size)  # open_clip builds timm's towers at the size of their name
    return Lseg(towers, config.dense, config.embed_dim)


class ConvTower(nn.Module):
    """A small convolutional trunk with timm's interface: two stride-2 convolutions, then residual blocks at stride 4.

    `forward_features` gives [B, num_features, H/4, W/4]; `forward` pools it by the mean, so a linear projection of the map
    averages exactly to the image's embedding, and the dense readout is free. The last norm starts with a bias of −2: after
    the GELU most places then say almost nothing, so the mean is about what is there rather than about the background.
    """

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.num_features = width
        self.feature_info = [{"num_chs": count, "reduction": stride} for count, stride in ((width // 2, 2), (width, 4), (width, 4))]
        self.default_cfg: dict[str, Any] = {"pool_size": (12, 12)}
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
            nn.GroupNorm(4, width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.norm = nn.GroupNorm(8, width)
        nn.init.constant_(self.norm.bias, -2.0)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        if num_classes or global_pool != "avg":
            raise ValueError("sightline_conv has no classifier and pools by the mean; use timm_pool='avg'")

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.body(self.stem(x_BCHW))))

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward_intermediates(
        self, x_BCHW: Tensor, indices: Sequence[int], norm: bool = True, intermediates_only: bool = True, stop_early: bool = True
    ) -> list[Tensor]:
        """The maps after the first convolution, before the last norm (which leaves little of most places), and after it."""
        assert norm and intermediates_only
        first = self.stem[:3](x_BCHW)
        last = self.body(self.stem[3](first))
        maps = [first, last, nn.functional.gelu(self.norm(last))]
        return [maps[index] for index in indices]

    def forward_head(self, x_BChw: Tensor, pre_logits: bool = False) -> Tensor:
        return x_BChw.mean((2, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_BCHW))


@register_model
def sightline_conv(
    pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, **options: Any
) -> ConvTower:
    """timm's entry point: `timm.create_model("sightline_conv", width=64, depth=4)`."""
    if pretrained:
        raise ValueError("sightline_conv has no pretrained weights")
    options.pop("cache_dir", None)
    return ConvTower(**options)
