"""What an ingest does to pixels: nothing by default, or one resize, one filter against noise and one encoding for all images.

Invariant: an image that needs none keeps its bytes, EXIF and all. What is re-encoded was decoded upright, goes once
through the towers' own resampling, and takes its label map through the same geometry by nearest neighbour, so that mask
and image keep their common size; what padding adds belongs to no class. The filter comes after scaling and before cutting or
padding, and leaves label maps alone.

    keep                the size stays
    shortest=256        the shorter side becomes 256
    longest=512         the longer side becomes 512
    exact=224x224       both sides, whatever that does to the aspect
    centre_crop=224x224 scaled to cover the box, and cut to it around the centre
    pad=224x224         scaled to fit into the box, centred on white

Nothing is enlarged by `shortest` and `longest` unless told `shortest=256,enlarge`; the others give every image the size that they
name unless told `exact=224x224,shrink`, which leaves images as they are that would have to be enlarged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sightline.models.codec import ImageError, ImageInfo
from sightline.models.encode import FORMATS, encode, encode_labels, versions
from sightline.pipelines.corpus.schema import IGNORE
from sightline.pipelines.ingest.denoise import VERSION, filtered

Mode = Literal["keep", "shortest", "longest", "exact", "centre_crop", "pad"]
MODES: tuple[str, ...] = get_args(Mode)
BOXES = ("exact", "centre_crop", "pad")  # modes whose size is a width and a height
ENCODINGS = ("original", *FORMATS)
QUALITY = 90
WHITE = 255
MAX_SIZE = 65_535
MAX_NOISE = 255
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Picture:
    """What becomes of an image and its mask."""

    image: bytes
    format: str
    width: int
    height: int
    mask: bytes | None


@dataclass(frozen=True)
class Resize:
    """One choice for all images of an ingest.

    Attributes:
        mode, size: as above, width before height; both numbers are equal where the mode wants one.
        only_if_larger: an image that would have to be enlarged keeps its size.
        encode: `jpeg`, `png` or `webp`; `original`: in its own format where it is one of these, else as PNG.
        quality: of JPEG and WebP, 1 to 100.
        denoise: standard deviation, on the scale 0 to 255, of the noise that non-local means takes out, for which every image is
            encoded anew; 0: no filter.
    """

    mode: str = "keep"
    size: Size = (0, 0)
    only_if_larger: bool = True
    encode: str = "original"
    quality: int = QUALITY
    denoise: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"there is no resize mode {self.mode!r}; choose from {', '.join(MODES)}")
        if self.mode != "keep" and not all(1 <= side <= MAX_SIZE for side in self.size):
            raise ValueError(f"a size of {self.size[0]} x {self.size[1]} is out of range; give 1 to {MAX_SIZE:,} pixels")
        if self.encode not in ENCODINGS:
            raise ValueError(f"images cannot be encoded as {self.encode!r}; choose from {', '.join(ENCODINGS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"a quality of {self.quality} is out of range; give 1 to 100")
        if not 0 <= self.denoise <= MAX_NOISE:
            raise ValueError(
                f"denoise={self.denoise:g} is no standard deviation of noise on the scale 0 to {MAX_NOISE}; 5 to 25 are usual, and "
                "0 is no filter"
            )

    @classmethod
    def parse(cls, resize: str = "keep", encode: str = "original", denoise: float = 0.0) -> Resize:
        """From the options' texts: `shortest=256`, `longest=512,enlarge`, `pad=640x480,shrink`; `jpeg:90`, `png`; and the noise.

        Raises:
            ValueError: a text is none of these, or the noise no number from 0 to 255.
        """
        choice, _, when = resize.partition(",")
        mode, _, size = choice.partition("=")
        if mode not in MODES:
            raise ValueError(f"there is no resize mode {mode!r}; choose from {', '.join(MODES)}, e.g. shortest=256")
        if when not in ("", "enlarge", "shrink") or (mode == "keep" and resize != "keep"):
            raise ValueError(
                f"{resize!r} is no resize; write it like keep, shortest=256, longest=512,enlarge or pad=640x480,shrink"
            )
        only_if_larger = when == "shrink" or (mode not in BOXES and when != "enlarge")
        format, _, quality = encode.partition(":")
        if quality and (format == "png" or ((format, mode) == ("original", "keep") and not denoise)):
            raise ValueError(f"{encode!r}: nothing is lost there, so there is no quality to choose; leave it away")
        return cls(
            mode=mode,
            size=(0, 0) if mode == "keep" else parse_size(mode, size),
            only_if_larger=only_if_larger,
            encode=format,
            quality=parse_number(quality, f"the quality in {encode!r}", "jpeg:90") if quality else QUALITY,
            denoise=denoise,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Resize:
        """The choice that `config` wrote down.

        Raises:
            ValueError: this process has other versions of the libraries, and would write other bytes.
        """
        choice = cls(**{**{name: value for name, value in config.items() if name != "versions"}, "size": tuple(config["size"])})
        if choice.config() != {**config, "size": list(config["size"])}:
            wanted = ", ".join(f"{name} {number}" for name, number in config.get("versions", {}).items())
            raise ValueError(f"the plan was made with {wanted}, and this process has others; install those, or ingest anew")
        return choice

    def config(self) -> dict[str, Any]:
        """What decides bytes, as JSON; the libraries' versions belong to it as soon as anything may be re-encoded.

        The filter is in it where there is one: it came later, and gave no plan another name.
        """
        fields = {**asdict(self), "size": list(self.size), "denoise": float(self.denoise)}
        if not self.denoise:
            fields.pop("denoise")
        if self.keeps_all:
            return fields
        return {**fields, "versions": versions() | ({"nlmeans": VERSION} if self.denoise else {})}

    @property
    def keeps_all(self) -> bool:
        """Whether every image keeps its bytes."""
        return self.mode == "keep" and self.encode == "original" and not self.denoise

    def apply(
        self,
        image: bytes,
        info: ImageInfo,
        rgb_HWC: NDArray[np.uint8],
        mask: bytes | None,
        labels_HW: NDArray[np.uint8] | None,
        max_pixels: int,
    ) -> Picture:
        """The image, and its mask, as the corpus gets them.

        Args:
            image, info, rgb_HWC: the file, what its header says, and its pixels, upright.
            mask, labels_HW: likewise; None where there is no mask.
            max_pixels: a larger result is refused.

        Raises:
            ImageError: the result would be too large, does not fit its format, or cannot be filtered.
        """
        source = (info.width, info.height)
        scaled, final = self.geometry(source)
        format = self.encode if self.encode != "original" else info.format
        if final == scaled == source and format == info.format and not self.denoise:
            return Picture(image, info.format, *source, mask)
        if max(scaled[0] * scaled[1], final[0] * final[1]) > max_pixels:
            raise ImageError("too_many_pixels", f"{scaled[0]:,} x {scaled[1]:,} pixels are more than the {max_pixels:,} allowed")
        format = format if format in FORMATS else "png"
        from sightline.models.preprocess import resample, to_CHW  # torch takes seconds to load, and `keep` needs none

        pixels = resample(to_CHW(rgb_HWC), scaled[1], scaled[0]).permute(1, 2, 0).numpy()
        if self.denoise:
            pixels = filtered(pixels, self.denoise)
        data = encode(place(pixels, final, WHITE), format, self.quality)
        if labels_HW is not None and not final == scaled == source:
            mask = encode_labels(place(nearest(labels_HW, scaled), final, IGNORE))
        return Picture(data, format, *final, mask)

    def geometry(self, source: Size) -> tuple[Size, Size]:
        """The size that an image is scaled to, and the one that it is then cut or padded to."""
        width, height = source
        if self.mode == "keep":
            return source, source
        if self.mode == "exact":
            scaled = final = self.size
        else:
            ratios = (self.size[0] / width, self.size[1] / height)
            scale = max(ratios) if self.mode in ("shortest", "centre_crop") else min(ratios)
            scaled = max(1, round(width * scale)), max(1, round(height * scale))
            final = self.size if self.mode in BOXES else scaled
        if self.only_if_larger and (scaled[0] > width or scaled[1] > height):
            return source, source
        return scaled, final


def parse_size(mode: str, text: str) -> Size:
    example = f"{mode}=224x224" if mode in BOXES else f"{mode}=256"
    sides = [parse_number(side, f"the size in '{mode}={text}'", example) for side in text.split("x")]
    if len(sides) > (2 if mode in BOXES else 1):
        raise ValueError(f"'{mode}={text}' has too many sides; write it like {example}")
    return sides[0], sides[-1]


def parse_number(text: str, what: str, example: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{what} is no whole number; write it like {example}")
    return int(text)


def nearest(labels_HW: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A label map at another size: each pixel takes the label at its centre."""
    height, width = labels_HW.shape
    rows = (2 * np.arange(size[1]) + 1) * height // (2 * size[1])
    columns = (2 * np.arange(size[0]) + 1) * width // (2 * size[0])
    return labels_HW[rows[:, None], columns]


def place(pixels_HW: NDArray[np.uint8], size: Size, fill: int) -> NDArray[np.uint8]:
    """The centre of an image cut to a size; where the size is larger, `fill` around it. Trailing axes stay."""
    height, width = pixels_HW.shape[:2]
    if (width, height) == size:
        return pixels_HW
    canvas = np.full((size[1], size[0], *pixels_HW.shape[2:]), fill, np.uint8)
    (to_y, from_y), (to_x, from_x) = overlap(height, size[1]), overlap(width, size[0])
    canvas[to_y, to_x] = pixels_HW[from_y, from_x]
    return canvas


def overlap(old: int, new: int) -> tuple[slice, slice]:
    """Where a centred span of `old` pixels lands in one of `new`, and what of it does."""
    length = min(old, new)
    to, start = (new - length) // 2, (old - length) // 2
    return slice(to, to + length), slice(start, start + length)
