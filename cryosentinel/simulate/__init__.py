"""The embedded benchmark: a deterministic High Mountain Asia of which every chip and every scene is a window.

One field over world coordinates (UTM metres, 10 m pixels), image year and seed gives terrain, glaciers, lakes,
optics, radar and labels; :func:`simulate` cuts a dataset in the published format from it and writes what is true
beside it, :func:`render_scene` cuts any window, :class:`TruthStore` reads the truth back.
"""

from cryosentinel.simulate.build import simulate
from cryosentinel.simulate.field import render_scene
from cryosentinel.simulate.materials import Material
from cryosentinel.simulate.presets import PRESETS, SimulationConfig
from cryosentinel.simulate.truth import Truth, TruthStore

__all__ = ["PRESETS", "Material", "SimulationConfig", "Truth", "TruthStore", "render_scene", "simulate"]
