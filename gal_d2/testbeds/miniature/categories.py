"""The miniature's categories: ten kinds of garment, most of them under their names in LVIS v1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MiniatureCategory:
    """One category, and how the miniature treats it.

    Attributes:
        name, synset, definition, synonyms: as in LVIS v1.
        label: the kind of object, in Fashion-MNIST's numbering.
        partner: name of the category that the generator confuses it with.
        image_share: share of the training scenes that it is in ...
        max_images: ... and the most of them, which keeps the rare rare in a larger set.
        ambiguous: whether most of its candidates show the partner.
    """

    name: str
    synset: str
    definition: str
    synonyms: tuple[str, ...]
    label: int
    partner: str
    image_share: float
    max_images: int | None = None
    ambiguous: bool = False


CATEGORIES = (
    MiniatureCategory(
        "boot",
        "boot.n.01",
        "footwear that covers the whole foot and lower leg",
        ("boot",),
        label=9,
        partner="shoe",
        image_share=0.09,
        max_images=60,
    ),
    MiniatureCategory(
        "coat",
        "coat.n.01",
        "an outer garment that has sleeves and covers the body from shoulder down",
        ("coat",),
        label=4,
        partner="sweater",
        image_share=0.4,
    ),
    MiniatureCategory(
        "dress",
        "dress.n.01",
        "a one-piece garment for a woman; has skirt and bodice",
        ("dress", "frock"),
        label=3,
        partner="coat",
        image_share=0.06,
        max_images=40,
    ),
    MiniatureCategory(
        "handbag",
        "bag.n.04",
        "a container used for carrying money and small personal items or accessories",
        ("handbag", "purse", "pocketbook"),
        label=8,
        partner="shirt",
        image_share=0.02,
        max_images=10,
    ),
    MiniatureCategory(
        "jersey",
        "jersey.n.03",
        "a close-fitting pullover shirt",
        ("jersey", "T-shirt", "tee_shirt"),
        label=0,
        partner="shirt",
        image_share=0.02,
        max_images=10,
        ambiguous=True,
    ),
    MiniatureCategory(
        "sandal_(type_of_shoe)",
        "sandal.n.01",
        "a shoe consisting of a sole fastened by straps to the foot",
        ("sandal_(type_of_shoe)",),
        label=5,
        partner="shoe",
        image_share=0.02,
        max_images=8,
        ambiguous=True,
    ),
    MiniatureCategory(
        "shirt",
        "shirt.n.01",
        "a garment worn on the upper half of the body",
        ("shirt",),
        label=6,
        partner="jersey",
        image_share=0.5,
    ),
    MiniatureCategory(
        "shoe",
        "shoe.n.01",
        "common footwear covering the foot",
        ("shoe", "sneaker_(type_of_shoe)", "tennis_shoe"),
        label=7,
        partner="boot",
        image_share=0.45,
        ambiguous=True,
    ),
    MiniatureCategory(
        "sweater",
        "sweater.n.01",
        "a crocheted or knitted garment covering the upper part of the body",
        ("sweater",),
        label=2,
        partner="coat",
        image_share=0.14,
        max_images=90,
        ambiguous=True,
    ),
    MiniatureCategory(
        "trousers",
        "trouser.n.01",
        "a garment extending from the waist to the knee or ankle, covering each leg separately",
        ("trousers", "pants_(clothing)"),
        label=1,
        partner="dress",
        image_share=0.4,
    ),
)
