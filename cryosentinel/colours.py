"""The colours of every figure, map and page: one meaning, one colour.

They are Okabe and Ito's, which stay apart for colour-blind readers (https://jfly.uni-koeln.de/color/). Nothing is told
apart by colour alone: outlines differ in place, lines in style, points in marker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LABEL = "#E69F00"
PREDICTION = "#CC79A7"
TRUTH = "#56B4E9"
NETWORK = PREDICTION
BASELINE = "#0072B2"
PUBLISHED = "#666666"  # figures that were not found here

#: For whatever else stands side by side; the first three mean nothing of the above.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Of a probability of water, from 0 to 1.
PROBABILITY = "cividis"
#: Of the years of one prediction, from early to late: lighter and darker kinds of its own colour.
YEARS = "RdPu"


def of_layer(name: str, number: int) -> str:
    """The colour of a layer of outlines or of a line: that of its meaning, else one of those without a meaning.

    Args:
        name: its meaning is told by the words predicted, prediction, soup, network, label, truth, mapped and lakes.
        number: of the layer on its map or in its figure, from 0.
    """
    meanings = {"predict": PREDICTION, "soup": NETWORK, "network": NETWORK, "label": LABEL, "truth": TRUTH,
                "mapped": PREDICTION, "lakes": PREDICTION}  # fmt: skip
    for word, colour in meanings.items():
        if word in name.lower():
            return colour
    return SERIES[number % 3]


def of_layers(names: Sequence[str]) -> list[str]:
    """The colours of the layers of one map: as :func:`of_layer`, those of a prediction in several years by their order.

    Args:
        names: of the layers; what ends in four digits is of that year.
    """
    import matplotlib

    found = [of_layer(name, number) for number, name in enumerate(names)]
    stems = [re.sub(r"\d{4}$", "", name) for name in names]
    for number, (name, stem) in enumerate(zip(names, stems, strict=True)):
        years = sorted(n for n, s in zip(names, stems, strict=True) if s == stem and n != s)
        if len(years) > 1 and found[number] == PREDICTION:
            at = 0.3 + 0.7 * years.index(name) / (len(years) - 1)
            found[number] = matplotlib.colors.to_hex(matplotlib.colormaps[YEARS](at))
    return found
