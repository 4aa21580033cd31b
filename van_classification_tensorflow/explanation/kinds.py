"""The methods by name: what each shows, where it looks, who published it."""

from __future__ import annotations

from dataclasses import dataclass

LAYER, GATE, PIXELS = "layer", "gate", "pixels"


@dataclass(frozen=True)
class Method:
    """A way to explain.

    Args:
        about: What its map is, in a few words.
        source: Where it was published.
        at: What it looks at: `LAYER`, `GATE` (the large-kernel attention's) or `PIXELS`.
        by_class: Whether the map is of a class; otherwise it is the same for all.
        normed: Whether its default layer is a stage's norm instead of the last block: in front of
            a layer norm, the sum of gradient x activation over the channels is zero.
        ends: What the least and the most of its map mean.
    """

    about: str
    source: str
    at: str = LAYER
    by_class: bool = True
    normed: bool = False
    ends: tuple[str, str] = ("nothing for the class", "most")


METHODS = {
    "grad-cam": Method("channels weighted by their mean gradient", "arXiv 1610.02391, Eq. 1, 2"),
    "grad-cam++": Method("Grad-CAM for several objects of a class", "arXiv 1710.11063, Eq. 19"),
    "hires-cam": Method(
        "gradient x activation, position by position", "arXiv 2011.08891, Eq. 3", normed=True
    ),
    "layer-cam": Method("positive gradient x activation", "doi 10.1109/TIP.2021.3089943, Eq. 4"),
    "eigen-cam": Method(
        "first principal component of the activation",
        "arXiv 2008.00299, Eq. 5",
        by_class=False,
        ends=("least", "most"),
    ),
    "score-cam": Method(
        "channels weighted by the score of what they let through", "arXiv 1910.01279, Alg. 1"
    ),
    "lka": Method(
        "magnitude of the large-kernel attention's gate",
        "arXiv 2202.09741, Eq. 1",
        at=GATE,
        by_class=False,
        ends=("least", "most"),
    ),
    "saliency": Method(
        "magnitude of the gradient of each pixel",
        "arXiv 1312.6034, Sec. 3",
        at=PIXELS,
        ends=("no influence", "most, for or against"),
    ),
    "smooth-grad": Method(
        "magnitude of the gradient of each pixel, averaged over noise",
        "arXiv 1706.03825, Sec. 2",
        at=PIXELS,
        ends=("no influence", "most, for or against"),
    ),
    "integrated-gradients": Method(
        "what each pixel adds to the score, from mean grey on", "arXiv 1703.01365, Eq. 1", at=PIXELS
    ),
}
