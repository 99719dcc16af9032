"""The colours of every figure, map and page: one meaning, one colour.

They are Okabe and Ito's, which stay apart for colour-blind readers (https://jfly.uni-koeln.de/color/). Nothing is told
apart by colour alone: outlines differ in place, lines in style, points in marker.
"""

from __future__ import annotations

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


def of_layer(name: str, number: int) -> str:
    """The colour of a layer of outlines or of a line: that of its meaning, else one of those without a meaning.

    Args:
        name: its meaning is told by the words predicted, prediction, soup, network, label and truth.
        number: of the layer on its map or in its figure, from 0.
    """
    meanings = {"predict": PREDICTION, "soup": NETWORK, "network": NETWORK, "label": LABEL, "truth": TRUTH}
    for word, colour in meanings.items():
        if word in name.lower():
            return colour
    return SERIES[number % 3]
