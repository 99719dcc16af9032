"""The ledger of published claims: each with its source, how it was checked, what was found, and whether it holds.

A claim is checked by code wherever code can: by the published figures' own arithmetic, by the package's rules on the
published regions, or by the figures of the study at hand. Published figures come from the package's published record
(:data:`cryosentinel.paths.PUBLISHED`); what the study found is simulated where its chips are, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cryosentinel import paths
from cryosentinel.files import read_json, write_json
from cryosentinel.sensors import BAND_COUNT, CHIP_SIZE, CHIP_STRIDE, PIXEL_HA, PIXEL_SIZE_M, REGIONS, S2_BANDS

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be checked here"
CARD, RECORD = "model card", "records of the published runs"
FILE = "ledger.json"
_DEGREE_M = 111_200.0  # of latitude
_FINETUNE, _PRETRAIN = "terramind_v3_finetune_almaty_v2", "terramind_v3_pretrain_v2"


@dataclass(frozen=True)
class Entry:
    """A line of the ledger.

    Attributes:
        claim: what is published, with its figures.
        source: where.
        checked: how it was checked here, or why it cannot be.
        found: what was found, in words, with the figures below.
        status: :data:`HOLDS`, :data:`FAILS` or :data:`OPEN`.
        data: what the finding rests on: published (arithmetic on published figures), code (a rule or a configuration),
            simulated or real (the chips of the study).
        figures: found, by name.
    """

    claim: str
    source: str
    checked: str
    found: str
    status: str
    data: str
    figures: Mapping[str, float] = field(default_factory=dict)


class Facts:
    """What claims are checked against.

    Args:
        metrics: figures of a study, as its metrics file holds them.
        kind: of the study's chips: simulated or real.
    """

    def __init__(self, metrics: Mapping[str, Mapping[str, Any]], kind: str = "simulated") -> None:
        self.metrics, self.kind = metrics, kind
        self.published = {name: record["value"] for name, record in read_json(paths.PUBLISHED).items()}

    def series(self, prefix: str) -> dict[str, float]:
        """Published figures whose names begin so: the rest of the name -> value."""
        return {n.removeprefix(prefix): v for n, v in self.published.items() if n.startswith(prefix)}

    def study(self, *names: str) -> dict[str, Any] | None:
        """Figures of the study by name; None where one was not measured."""
        records = [self.metrics.get(name) or {} for name in names]
        if any(record.get("value") is None for record in records):
            return None
        return {name: record["value"] for name, record in zip(names, records, strict=True)}

    def interval(self, name: str) -> tuple[float, float] | None:
        """The interval of a figure of the study; None where there is none."""
        record = self.metrics.get(name) or {}
        return None if record.get("low") is None else (record["low"], record["high"])


_CLAIMS: dict[str, Callable[[Facts], Entry]] = {}


def _claim(check: Callable[[Facts], Entry]) -> Callable[[Facts], Entry]:
    _CLAIMS[check.__name__.removeprefix("_")] = check
    return check


def _holds(condition: bool) -> str:
    return HOLDS if condition else FAILS


def _config(name: str) -> dict[str, Any]:
    return yaml.safe_load(paths.config(name).read_text(encoding="utf-8"))


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Chip centres at the published stride over the two regions inside the corridor, degrees."""
    lat, lon = [], []
    step = CHIP_STRIDE * PIXEL_SIZE_M / _DEGREE_M
    for west, south, east, north in (REGIONS["ile_alatau"], REGIONS["zhetysu_alatau"]):
        rows = np.arange(south, north, step)
        columns = np.arange(west, east, step / math.cos(math.radians((south + north) / 2)))
        a, b = np.meshgrid(rows, columns, indexing="ij")
        lat.append(a.ravel())
        lon.append(b.ravel())
    return np.concatenate(lat), np.concatenate(lon)


@cache
def _split(stage: str) -> np.ndarray:
    from cryosentinel.data.split import assign_splits

    data = _config(stage)["data"]
    return assign_splits(*_grid(), data["block_size"], data["buffer"])


@cache
def _check() -> Any:
    from cryosentinel.data.split_check import check_split

    return check_split(*_grid(), _split(_FINETUNE))


_ON_GRID = "the rule, on every chip position of Ile and Zhetysu Alatau at the published stride"


# ------------------------------------------------------------------------------------------------------------ network


@_claim
def _encoder_size(f: Facts) -> Entry:
    said = f.published["encoder_parameters_millions"]
    found = f.study("published_parameters_encoder")
    claim = f"The encoder has {said:,.0f} million parameters."
    checked = "the encoder of the published configuration is built, without weights, and counted"
    if found is None:
        return Entry(claim, CARD, checked, "not counted by this study", OPEN, "code")
    millions = found["published_parameters_encoder"] / 1e6
    text = f"{millions:,.1f} million; the published number may include tokenisers or decoders of the pretraining"
    return Entry(claim, CARD, checked, text, _holds(abs(millions / said - 1) < 0.05), "code", {"millions": millions})


@_claim
def _decoder_channels(f: Facts) -> Entry:
    said = list(f.series("decoder_channels/").values())
    model = _config(_FINETUNE)["model"]
    built = [model["decoder_channels"], *model["head_channels"]]
    text = f"{model['decoder']} works at one width throughout; width and head together read {built}, and that builds"
    return Entry(
        f"{model['decoder']} with the channel sequence {' - '.join(f'{c:g}' for c in said)}.", CARD,
        "read from the configuration; a sequence that halves is a U-Net's, so it is read as decoder width, then head",
        text, _holds(built == said), "code",
    )  # fmt: skip


@_claim
def _inputs(f: Facts) -> Entry:
    said, side = f.published["input_channels"], f.published["chip_pixels"]
    return Entry(
        f"{said} input channels (Sentinel-2 without B10, two of Sentinel-1, elevation) of {side} x {side} pixels.",
        CARD, "counted in the package's table of bands, which the data and the configurations use",
        f"{BAND_COUNT} channels, {CHIP_SIZE} pixels, {'no ' if 'B10' not in S2_BANDS else ''}B10",
        _holds(said == BAND_COUNT and side == CHIP_SIZE and "B10" not in S2_BANDS), "code", {"channels": BAND_COUNT},
    )  # fmt: skip


@_claim
def _learning_rates(f: Facts) -> Entry:
    backbone, decoder = f.published["card_backbone_lr"], f.published["card_decoder_lr"]
    optim = _config(_FINETUNE)["optim"]
    ratio = optim["backbone_mult"] * optim["layer_decay"]
    text = (
        f"decoder {optim['lr']:g}, last block {ratio:.3g} of it, falling by {optim['layer_decay']:g} a block: neither "
        "number, nor their ratio"
    )
    same = math.isclose(optim["lr"], decoder) and math.isclose(ratio, backbone / decoder)
    return Entry(
        f"Learning rates of {backbone:g} (backbone) and {decoder:g} (decoder).", RECORD,
        "compared with the configuration that ran", text, _holds(same), "code", {"last_block_share": ratio},
    )  # fmt: skip


@_claim
def _positive_weight(f: Facts) -> Entry:
    loss = _config(_FINETUNE)["loss"]
    said, ceiling = f.published["card_pos_weight"], loss["pos_weight_max"]
    text = f"the weight is each batch's ratio of background to lake; {ceiling:g} is only the most it can be"
    # A fixed weight would stand in the configuration under this name; the loss has no such field.
    return Entry(
        f"BCE weighs lake pixels by {said:g}.", CARD, "compared with the recipe that ran", text,
        _holds(loss.get("pos_weight") == said), "code", {"ceiling": ceiling},
    )  # fmt: skip


@_claim
def _soup_epochs(f: Facts) -> Entry:
    epochs = sorted(f.series("soup_epoch/").values())
    steps = sorted(f.series("snapshot_step/").values())
    a_epoch = f.published["chips_train"] // _config(_FINETUNE)["data"]["batch_size"]
    at = [step / a_epoch for step in steps]
    text = (
        f"{len(steps)} files for {len(epochs)} epochs; at {a_epoch:,} steps an epoch their steps are the ends of "
        f"epochs {', '.join(f'{e:.0f}' for e in at)}. Which files were averaged cannot be told from outside"
    )
    return Entry(
        f"The soup averages the snapshots of epochs {', '.join(f'{e:g}' for e in epochs)}.", CARD,
        "steps in the published file names over the steps of an epoch (training chips over the batch)", text,
        _holds([round(e) for e in at] == epochs), "published", {f"epoch_of_{s}": s / a_epoch for s in steps},
    )  # fmt: skip


@_claim
def _soup_gain(f: Facts) -> Entry:
    said = f.published["val_iou@0.50_tta"] - f.published["best_snapshot_val_iou@0.50_tta"]
    name = "val_iou_soup_minus_best_snapshot"
    found, interval = f.study(name), f.interval(name)
    claim = f"The soup is better than its best snapshot (by {said:.4f} on validation)."
    checked = "the same difference in this study, with a paired interval over blocks; the published one has none"
    if found is None:
        return Entry(claim, CARD, checked, "not measured by this study", OPEN, f.kind)
    if interval is None:
        why = f.metrics[name].get("reason") or "none is recorded"
        return Entry(claim, CARD, checked, f"{found[name]:+.4f}; no interval: {why}", OPEN, f.kind, found)
    low, high = interval
    text = f"{found[name]:+.4f} ({low:+.4f} to {high:+.4f})"
    status = HOLDS if low > 0 else FAILS if high < 0 else OPEN
    return Entry(claim, CARD, checked, text, status, f.kind, found)


# --------------------------------------------------------------------------------------------------------------- data


@_claim
def _separation(f: Facts) -> Entry:
    said, here = f.published["separation_km"], f.study("split_smallest_distance_m")
    km = _check().smallest_distance_m / 1000
    text = f"the rule lets centres of two splits come as near as {km:.1f} km"
    if here:
        text += f"; nearest in this study's chips {here['split_smallest_distance_m'] / 1000:.1f} km"
    return Entry(
        f"Training and test chips lie at least {said:g} km apart.", RECORD, f"measured: {_ON_GRID}", text,
        _holds(km >= said), "code", {"rule_km": km},
    )  # fmt: skip


@_claim
def _leakage_within_a_stage(f: Facts) -> Entry:
    found = _check()
    text = f"{found.overlapping_pairs} pairs of chips share pixels, of {sum(found.chips.values()):,} positions"
    return Entry(
        "The block split rules out that splits of one stage share ground.", CARD, f"measured: {_ON_GRID}", text,
        _holds(found.passed), "code", {"overlapping_pairs": found.overlapping_pairs},
    )  # fmt: skip


@_claim
def _leakage_between_stages(f: Facts) -> Entry:
    from cryosentinel.data.split_check import check_stages

    stages = ((*_grid(), _split(stage)) for stage in (_PRETRAIN, _FINETUNE))
    share = check_stages(*stages)["test"]["share"] or 0.0
    text = f"{share:.0%} of the finetuning's test positions share pixels with training chips of the pretraining"
    return Entry(
        "Scores on the test split are scores on unseen ground.", CARD,
        f"both stages hash blocks of their own size with one salt; measured: {_ON_GRID}", text, _holds(share == 0),
        "code", {"share_seen": share},
    )  # fmt: skip


@_claim
def _split_shares(f: Facts) -> Entry:
    counts = [f.published[f"chips_{name}"] for name in ("train", "val", "test")]
    said = [f.published[f"split_share_{name}"] for name in ("train", "val", "test")]
    shares = [100 * n / sum(counts) for n in counts]
    text = f"{', '.join(f'{s:.1f}' for s in shares)} %: the outcome; the rule asks for 80, 10 and 10 of 100 blocks"
    return Entry(
        f"Train, validation and test hold {', '.join(f'{s:g}' for s in said)} % of the chips.", CARD,
        "from the published counts of chips", text, _holds([round(s) for s in shares] == said), "published",
        dict(zip(("train", "val", "test"), shares, strict=True)),
    )  # fmt: skip


@_claim
def _buffer_width(f: Facts) -> Entry:
    said, degrees = f.published["buffer_km"], _config(_FINETUNE)["data"]["buffer"]
    north = degrees * _DEGREE_M / 1000
    east = [north * math.cos(math.radians(REGIONS[r][k])) for r, k in (("zhetysu_alatau", 3), ("ile_alatau", 1))]
    text = f"{north:.1f} km to the north, but {east[0]:.1f} to {east[1]:.1f} km to the east in the corridor"
    return Entry(
        f"The buffer of {degrees:g} degrees is {said:g} km.", CARD, "geometry at the corridor's latitudes", text,
        _holds(min(east) >= said), "code", {"north_km": north, "east_km": min(east)},
    )  # fmt: skip


@_claim
def _buffer_drops(f: Facts) -> Entry:
    dropped = f.published["chips_dropped_by_buffer"]
    said = dropped / (dropped + sum(f.published[f"chips_{name}"] for name in ("train", "val", "test")))
    rule = float((_split(_FINETUNE) == "buffer").mean())
    return Entry(
        f"The buffer drops {dropped:,} chips ({said:.1%}).", RECORD, f"share that the rule drops: {_ON_GRID}",
        f"{rule:.1%}", _holds(abs(rule - said) < 0.02), "code", {"share": rule},
    )  # fmt: skip


@_claim
def _filter_table(f: Facts) -> Entry:
    text_threshold, code_threshold = f.published["sanity_mndwi_text"], f.published["sanity_mndwi_code"]
    names = [f"sanity_kept_lakes/{t:.1f}" for t in (text_threshold, code_threshold)]
    found = f.study(*names)
    checked = "both thresholds over the study's chips: share of lake-bearing chips that the filter keeps"
    text = "" if found is None else f"keeps {found[names[0]]:.0%} at the text's and {found[names[1]]:.0%} at the code's"
    return Entry(
        f"The table of the sanity filter has MNDWI above {text_threshold:g} (text; {code_threshold:g} in the code).",
        RECORD, checked, text or "the two thresholds differ; the study did not count what they keep",
        _holds(text_threshold == code_threshold), f.kind, found or {},
    )  # fmt: skip


@_claim
def _dataset_size(f: Facts) -> Entry:
    chips, gib = f.published["chips_all_regions"], f.published["dataset_gib"]
    raw = chips * CHIP_SIZE**2 * (12 * 2 + 2 * 4 + 2 + 1) / 2**30  # uint16, float32, int16, uint8
    text = f"{raw:.1f} GiB before compression: {raw / gib:.1f} to 1, possible; the shards were not counted here"
    return Entry(
        f"{chips:,} chips take {gib:g} GiB on disk.", CARD, "bytes of a chip's arrays times the chips", text, OPEN,
        "published", {"uncompressed_gib": raw},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- scores


@_claim
def _headline(f: Facts) -> Entry:
    said = f.published["test_iou@0.50_tta"]
    return Entry(
        f"Global IoU of {said:.4f} on the test split.", CARD,
        "needs the published checkpoint and chips: scripts/reproduce_benchmarks.sh compares every row with them",
        "neither is part of this repository", OPEN, "published",
    )  # fmt: skip


@_claim
def _same_protocol(f: Facts) -> Entry:
    lakes, chips = f.published["literature_cohort_lakes"], f.published["chips_val"]
    name = "compared_soup_minus_smp_unet_test_iou"
    found, interval = f.study(name), f.interval(name)
    text = f"a cohort of {lakes} lakes there, {chips} chips of three regions here: not one protocol"
    if found and interval:
        text += f"; on one split the gain over its U-Net, given all bands, is {found[name]:+.3f} "
        text += f"({interval[0]:+.3f} to {interval[1]:+.3f})"
    return Entry(
        f"Same protocol as Adhikari and Regmi, whose IoU is {f.published['literature_val_iou_s1_unet']:.4f}.", CARD,
        "cohorts compared; the literature's network trained on this study's split where the study has it", text, FAILS,
        f.kind, found or {},
    )  # fmt: skip


@_claim
def _corrected_score(f: Facts) -> Entry:
    raw, corrected = f.published["test_iou@0.50_tta"], f.published["test_iou@0.50_label_corrected"]
    names = [f"test_iou@0.50{end}" for end in ("_label_dropped_one_sided", "_label_corrected", "_tta")]
    found = f.study(*names)
    text = "dropping only chips that cost the network and only errors that excuse it can only raise a score"
    if found:
        one, both, own = (found[name] for name in names)
        text += f"; here that way gives {one - own:+.4f}, corrected in both directions {both - own:+.4f}"
    return Entry(
        f"With corrected labels the test IoU is {corrected:.4f} instead of {raw:.4f}.", CARD,
        "the same correction and a two-sided one, by the audit's rule on this study's test split", text, FAILS, f.kind,
        found or {},
    )  # fmt: skip


@_claim
def _corrected_chips(f: Facts) -> Entry:
    chips, left = f.published["chips_test"], f.published["chips_label_corrected"]
    audited = f.published["audited_test_chips"]
    return Entry(
        f"Of {chips} test chips {audited} are dropped, {left} stay.", CARD, "arithmetic", f"{chips - audited} stay",
        _holds(chips - audited == left), "published", {"stay": chips - audited},
    )  # fmt: skip


@_claim
def _undersized_share(f: Facts) -> Entry:
    audited, chips = f.published["audited_test_chips"], f.published["chips_test"]
    said = f.published["undersized_share_percent"]
    text = (
        f"{audited} of {chips} chips are {100 * audited / chips:.2f} %, but only the {audited} worst were looked at: a "
        "lower bound, and nothing on labels that are too large"
    )
    return Entry(
        f"Labels are too small on about {said:g} % of the chips.", CARD, "arithmetic on the published audit", text,
        OPEN, "published", {"percent": 100 * audited / chips},
    )  # fmt: skip


@_claim
def _best_threshold(f: Facts) -> Entry:
    sweeps = {
        split: {t: v for t in ("0.30", "0.40", "0.50", "0.60", "0.70", "0.80")
                if (v := f.published.get(f"{split}_iou@{t}_tta")) is not None}
        for split in ("val", "test")
    }  # fmt: skip
    best = {split: max(values, key=values.__getitem__) for split, values in sweeps.items()}
    found = f.study("best_threshold")
    here = f"; in this study {found['best_threshold']:.2f}" if found else ""
    return Entry(
        f"The best threshold on validation is {best['val']}.", CARD, "the published sweep's own figures",
        f"largest at {best['val']} on validation, at {best['test']} on test{here}",
        _holds(best["val"] == f"{f.published['best_threshold']:.2f}"), "published", found or {},
    )  # fmt: skip


@_claim
def _regions(f: Facts) -> Entry:
    prefix = "test_iou@0.50_tta_"
    scores = f.series(prefix)
    counts = {name: read_json(paths.PUBLISHED)[prefix + name]["n"] for name in scores}
    total, overall = sum(counts.values()), f.published["test_iou@0.50_tta"]
    within = min(scores.values()) <= overall <= max(scores.values())
    text = f"the regions hold {total} chips; the global score lies {'between' if within else 'outside'} theirs"
    return Entry(
        f"Scores of {len(scores)} regions make up the test score ({overall:.4f}).", RECORD,
        "a ratio of sums lies between those of its parts, and the parts' chips add up", text,
        _holds(within and total == f.published["chips_test"]), "published", {"chips": total},
    )  # fmt: skip


@_claim
def _mean_of_batches(f: Facts) -> Entry:
    logged, scored = f.published["best_file_val_iou"], f.published["best_snapshot_val_iou@0.50_tta"]
    text = f"the file's {logged:.3f} is the training log's mean over batches, the table's {scored:.4f} a global score"
    return Entry(
        f"The best snapshot's IoU is {logged:.3f} (file name) or {scored:.4f} (table).", CARD,
        "compared; this package logs and reports the global score alone", text,
        _holds(abs(logged - scored) < 0.0005), "published", {"difference": scored - logged},
    )  # fmt: skip


@_claim
def _other_water(f: Facts) -> Entry:
    names = ["other_water_truth/reservoirs called a lake", "other_water_truth/glacial lakes found beside them"]
    found = f.study(*names)
    claim = "The network suppresses water that is no glacial lake."
    checked = "share of simulated reservoirs that this study's network calls a lake, beside that of glacial lakes"
    if found is None:
        return Entry(claim, CARD, checked, "no known truth in these chips", OPEN, f.kind)
    reservoir, lake = (found[name] for name in names)
    text = f"{reservoir:.0%} of reservoirs and {lake:.0%} of lakes are called lake"
    return Entry(claim, CARD, checked, text, _holds(reservoir < 0.5 * lake), f.kind, found)


@_claim
def _area(f: Facts) -> Entry:
    from pyproj import Geod, Transformer

    latitudes = REGIONS["zhetysu_alatau"][3], REGIONS["ile_alatau"][1]
    factors = []
    for lat in latitudes:
        lon, side = np.array([77.0, 77.01, 77.01, 77.0]), 0.01
        corners = lon, lat + np.array([0.0, 0.0, side, side])
        x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(*corners)
        flat = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        factors.append(float(flat / abs(Geod(ellps="WGS84").polygon_area_perimeter(*corners)[0])))
    text = (
        f"{min(factors):.2f} (south) to {max(factors):.2f} times the area on the ground in the corridor; this package "
        "measures on the ellipsoid"
    )
    return Entry(
        "Lake areas in hectares are measured on polygons in Web Mercator.", RECORD,
        "a field at both ends of the corridor, measured in Web Mercator and on the ellipsoid", text,
        _holds(max(factors) < 1.01), "code", {"least": min(factors), "most": max(factors)},
    )  # fmt: skip


@_claim
def _smallest_lake(f: Facts) -> Entry:
    ha, px = f.published["smallest_lake_ha"], f.published["smallest_lake_px"]
    names = ["lakes_detected_truth/under 0.5 ha", "lakes_detected_truth/1 to 10 ha"]
    found = f.study(*names)
    text = f"{ha / PIXEL_HA:.0f} pixels"
    if found:
        text += f"; in this study {found[names[0]]:.0%} of smaller lakes are found, "
        text += f"{found[names[1]]:.0%} between 1 and 10 ha"
    return Entry(
        f"Lakes below {ha:g} ha ({px:g} pixels) are not reliable.", CARD,
        "arithmetic, and detection by true lake size in this study", text,
        _holds(round(ha / PIXEL_HA) == px and (not found or found[names[0]] < found[names[1]])), f.kind, found or {},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ running


@_claim
def _timing(f: Facts) -> Entry:
    one, eight = (f.published[f"inference_ms_per_chip_h100_tta_batch_{n}"] for n in (1, 8))
    return Entry(
        f"A chip takes {one:g} ms at batch 1 and {eight:g} ms at batch 8 on an H100, flips included.", RECORD,
        "needs that device and the published checkpoint; benchmarks/published_model.py measures it where both are",
        "not measured: this study runs a smaller network on a processor", OPEN, "published",
    )  # fmt: skip


@_claim
def _training_cost(f: Facts) -> Entry:
    hours, dollars = f.published["train_hours_h100"], f.published["train_dollars"]
    return Entry(
        f"Training takes {hours:g} hours on an H100 and {dollars:g} dollars.", CARD,
        "needs that device and all published chips", f"{dollars / hours:.1f} dollars an hour; not measured", OPEN,
        "published", {"dollars_an_hour": dollars / hours},
    )  # fmt: skip


@_claim
def _safe_loading(f: Facts) -> Entry:
    return Entry(
        "The checkpoint can be loaded with torch.load(..., weights_only=False).", CARD,
        "a hostile checkpoint is given to this package's loader and converter (tests/test_checkpoint.py)",
        "read that way a file runs whatever it contains; the package refuses it and converts it without running it",
        FAILS, "code",
    )  # fmt: skip


def entries(metrics: Mapping[str, Mapping[str, Any]], kind: str = "simulated") -> dict[str, Entry]:
    """Check every claim.

    Args:
        metrics: figures of a study, as its metrics file holds them; what it lacks is said in the entries.
        kind: of the study's chips.

    Returns:
        Name of the claim -> its entry, in the order of this module.
    """
    facts = Facts(metrics, kind)
    return {name: check(facts) for name, check in _CLAIMS.items()}


def write(out: Path, metrics: Mapping[str, Mapping[str, Any]], kind: str = "simulated") -> Path:
    """Check every claim and write ``<out>/ledger.json``: name -> :class:`Entry` as a mapping."""
    path = out / FILE
    write_json(path, {name: asdict(entry) for name, entry in entries(metrics, kind).items()})
    return path
