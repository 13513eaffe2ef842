"""The categories of the street set: which labels they unite, and what their candidates show."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StreetCategory:
    """A category made of one or more labels of Clothing Co-Parsing.

    Attributes:
        name: the category's, an English singular where there is one.
        labels: names in ``label_list.mat``; the first is the one that is kept apart from its
            near-synonyms, the others, on request.
        pairs: what is worn in pairs: every component of its label is an instance.
    """

    name: str
    labels: tuple[str, ...]
    pairs: bool = False


@dataclass(frozen=True)
class CandidatePlan:
    """What the candidates of one category show: so many photographs by label of the garments.

    Attributes:
        good: labels that are what the category says.
        wrong: labels of similar garments.
        strays: photographs that their owners could not name.
    """

    good: dict[str, int]
    wrong: dict[str, int] = field(default_factory=dict)
    strays: int = 0

    @property
    def ambiguous(self) -> bool:
        """Whether most candidates show a similar garment."""
        good, wrong = sum(self.good.values()), sum(self.wrong.values())
        return wrong > 0.65 * (good + wrong + self.strays)


# Labels that several annotators used for the same things stand in one line. "null", "skin", "hair"
# are no objects; "accessories" and "intimate" say nothing of the kind.
CATEGORIES = (
    StreetCategory("bag", ("bag", "purse", "wallet")),
    StreetCategory("belt", ("belt",)),
    StreetCategory("blazer", ("blazer", "suit")),
    StreetCategory("blouse", ("blouse",)),
    StreetCategory("boot", ("boots",), pairs=True),
    StreetCategory("bra", ("bra",)),
    StreetCategory("bracelet", ("bracelet",)),
    StreetCategory("cape", ("cape",)),
    StreetCategory("cardigan", ("cardigan",)),
    StreetCategory("coat", ("coat", "jacket")),
    StreetCategory("dress", ("dress",)),
    StreetCategory("earring", ("earrings",), pairs=True),
    StreetCategory("glasses", ("glasses",)),
    StreetCategory("glove", ("gloves",), pairs=True),
    StreetCategory("hat", ("hat",)),
    StreetCategory("jumpsuit", ("romper", "bodysuit")),
    StreetCategory("leggings", ("leggings",)),
    StreetCategory("necklace", ("necklace",)),
    StreetCategory("pants", ("pants", "jeans")),
    StreetCategory("ring", ("ring",)),
    StreetCategory("sandal", ("sandals",), pairs=True),
    StreetCategory("scarf", ("scarf",)),
    StreetCategory("shirt", ("shirt",)),
    StreetCategory(
        "shoe",
        ("shoes", "flats", "loafers", "pumps", "heels", "wedges", "clogs", "sneakers"),
        pairs=True,
    ),
    StreetCategory("shorts", ("shorts",)),
    StreetCategory("skirt", ("skirt",)),
    StreetCategory("sock", ("socks",), pairs=True),
    StreetCategory("stockings", ("stockings", "tights")),
    StreetCategory("sunglasses", ("sunglasses",)),
    StreetCategory("sweater", ("sweater", "jumper")),
    StreetCategory("sweatshirt", ("sweatshirt", "hoodie")),
    StreetCategory("swimwear", ("swimwear",)),
    StreetCategory("t-shirt", ("t-shirt",)),
    StreetCategory("tie", ("tie",)),
    StreetCategory("top", ("top",)),
    StreetCategory("vest", ("vest",)),
    StreetCategory("watch", ("watch",)),
)

# Three categories that have candidates and are easy to name keep so many training images at most;
# the others of their images validate: few to learn from, and enough to measure by.
RARE = ("hat", "shorts", "t-shirt")
RARE_IMAGES = 10

STRAYS = ("Not sure", "Other", "Skip")

# Which garments stand in for a text-to-image model's drawings, with its mistakes: asked for X it
# draws the similar Y. No photograph is used twice; where there are fewer, all its uses shrink.
CANDIDATES = {
    "t-shirt": CandidatePlan(
        {"T-Shirt": 90}, {"Longsleeve": 140, "Polo": 60, "Undershirt": 15}, strays=15
    ),
    "shorts": CandidatePlan({"Shorts": 90}, {"Pants": 170, "Skirt": 50}, strays=10),
    "hat": CandidatePlan({"Hat": 150}, {"Shoes": 120}, strays=40),
    "shirt": CandidatePlan(
        {"Shirt": 130}, {"T-Shirt": 100, "Polo": 20, "Longsleeve": 30}, strays=20
    ),
    "blouse": CandidatePlan({"Blouse": 23}, {"Shirt": 45, "Longsleeve": 20}, strays=4),
    "top": CandidatePlan(
        {"Top": 43, "Undershirt": 85}, {"T-Shirt": 120, "Longsleeve": 50}, strays=15
    ),
    "sweatshirt": CandidatePlan(
        {"Hoodie": 90}, {"Outwear": 70, "Shirt": 80, "T-Shirt": 70}, strays=10
    ),
    "coat": CandidatePlan(
        {"Outwear": 130}, {"Longsleeve": 90, "Shirt": 50, "Hoodie": 10}, strays=10
    ),
    "blazer": CandidatePlan({"Blazer": 105}, {"Outwear": 110, "Longsleeve": 40}, strays=10),
    "dress": CandidatePlan(
        {"Dress": 150}, {"T-Shirt": 60, "Body": 60, "Skirt": 20, "Undershirt": 15}, strays=20
    ),
    "skirt": CandidatePlan({"Skirt": 85}, {"Dress": 90, "Shorts": 70}, strays=10),
    "pants": CandidatePlan({"Pants": 150}, {"Shorts": 130}, strays=30),
    "shoe": CandidatePlan({"Shoes": 150}, {"Hat": 20}, strays=100),
}
