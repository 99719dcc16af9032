"""The subcommands as typed functions: jsonargparse reads options, types and help from signatures and docstrings.

Every import waits until its command runs, and what a command reads is looked for before that: a misspelt name is said
at once, not after the twenty seconds that torch and TerraTorch take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cryosentinel import paths
from cryosentinel.errors import ConfigError
from cryosentinel.precision import Choice

if TYPE_CHECKING:
    from cryosentinel.ingest import Settings

Preset = Literal["tiny", "quick", "standard"]


def _look_for(
    ckpt: str | None = None, data: Path | None = None, model: Path | None = None, statistics: Path | None = None
) -> None:
    """Look for the files that a command is given; the ones left out are made or have a default.

    Raises:
        CryoSentinelError: one of them does not exist.
    """
    if ckpt is not None and ckpt.startswith("hf://"):
        from cryosentinel.hub import parse_hub_uri

        parse_hub_uri(ckpt)
    elif ckpt is not None:
        paths.checkpoint(ckpt)
    if data is not None:
        paths.dataset(data)
    if model is not None:
        paths.config(model)
    if statistics is not None:
        paths.existing(statistics, "file of statistics")


def _check_threshold(threshold: float) -> None:
    from cryosentinel.evaluation.scores import threshold_bin

    threshold_bin(threshold)


def _check_device(device: str) -> None:
    """Refuse a device that torch does not find, with its reason."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"--device is {device!r}, which cannot be used here ({reason}); leave it out.") from None


def look_for_run(words: Sequence[str]) -> None:
    """Look for what a run is to read, before the parser of ``fit`` is imported; the run itself checks again.

    Args:
        words: of the command line, after ``fit``.

    Raises:
        CryoSentinelError: a configuration, the dataset or a checkpoint does not exist.
    """
    import yaml

    from cryosentinel.arguments import as_options

    values: dict[str, Any] = {}
    for word in as_options(words):
        name, _, value = word.removeprefix("--").partition("=")
        if name != "config":
            values[name] = value
            continue
        try:
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            values["run_name"] = content.get("run_name")
            values |= {
                f"{section}.{k}": v for section in ("data", "model") for k, v in content.get(section, {}).items()
            }
        except (ValueError, yaml.YAMLError, AttributeError):
            continue  # the parser says what is wrong with it
    if {"h", "help", "print_config"} & {name.strip("-") for name in values}:
        return
    if root := values.get("data.root"):
        paths.dataset(paths.under_outputs(root))
    resume, run = values.get("resume", "auto"), values.get("run_name")
    if resume not in ("auto", "never", "null"):
        paths.existing(resume, "checkpoint")
    elif run and (start := values.get("model.weights")) and start != "null":
        last = Path(values.get("run_dir") or paths.runs() / str(run), "checkpoints", "last.ckpt")
        if resume != "auto" or not last.is_file():  # a run that goes on has its own
            paths.start_weights(start if start.startswith("hf://") else str(paths.under_outputs(start)))


def study(
    preset: Preset = "quick",
    out: Path | None = None,
    chapters: Path | None = None,
    parameters: dict[str, Any] | None = None,
    force: bool = False,
    seeds: str = "",
) -> None:
    """Run the whole study on the embedded benchmark and write its notebooks, executed, into the book.

    Args:
        preset: size: tiny (seconds of training, for tests), quick (minutes) or standard (an hour and more).
        out: folder of metrics.json and the study's figures; outputs/study by default.
        chapters: folder of the executed notebooks; book/chapters by default.
        parameters: further parameters of the notebooks, as --parameters.NAME VALUE; unknown names are refused.
        force: run again what did not change.
        seeds: of several training runs, as 17,42,1337: mean and spread of every figure go to OUT/seeds.json.
    """
    paths.project_root()
    try:
        numbers = [int(word) for word in seeds.split(",")] if seeds else []
    except ValueError:
        raise ConfigError(f"--seeds is {seeds!r}; give whole numbers with commas, as 17,42,1337.") from None
    from cryosentinel.study.chapters import run_seeds, run_study

    if numbers:
        print(run_seeds(numbers, preset, out, chapters, parameters, force))
        return
    run_study(preset, out=out, chapters=chapters, parameters=parameters, force=force)


def simulate(
    root: Path,
    preset: Preset | Literal["reservoirs"] = "quick",
    chips: int | None = None,
    seed: int | None = None,
    regions: list[str] | None = None,
    workers: int = 2,
) -> None:
    """Write the embedded benchmark: simulated chips in the published format, the known truth in a sibling folder.

    Args:
        root: folder of the shards; the truth goes to ROOT-truth.
        preset: number of places, windows and years; reservoirs is the enriched stratum, a test split alone.
        chips: about so many chips instead of the preset's number.
        seed: another draw of the same kind; the preset's own by default.
        regions: only these of the twelve, as [ile_alatau,tien_shan_full]; the preset's own by default.
        workers: processes; the chips do not depend on it.
    """
    from dataclasses import replace

    from cryosentinel.simulate import PRESETS
    from cryosentinel.simulate import simulate as run

    config = PRESETS[preset] if chips is None else PRESETS[preset].scaled(chips)
    config = config if seed is None else replace(config, seed=seed)
    config = config if regions is None else replace(config, regions=tuple(regions))
    print(run(root, config, workers=workers))


def soup(run: Path, out: Path | None = None) -> None:
    """Average the snapshots of a run, tensor by tensor, into one checkpoint.

    Args:
        run: run folder; its checkpoints/step*-iou*.ckpt go in.
        out: checkpoint to write; RUN/checkpoints/soup.ckpt by default.
    """
    paths.snapshots(run)
    from cryosentinel.models.soup import make_soup

    print(make_soup(run, out))


def evaluate(
    ckpt: str = "soup.ckpt",
    preset: Preset = "quick",
    data: Path | None = None,
    flips: Literal[1, 2, 4] = 4,
    adaptive_flips: bool = False,
    precision: Choice = "auto",
    out: str = "",
    model: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Score a checkpoint on the validation and test splits: against the labels, and the known truth where there is one.

    Args:
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path.
        preset: the simulated chips to score on, and the configuration that splits them.
        data: folder of chips in the published format to score on instead, chosen and split as the checkpoint's own
            stage did: by --model, or by the configuration in its run's folder.
        flips: test-time flips averaged in logit space.
        adaptive_flips: flip only chips whose first pass is undecided around 0.5: about half the work.
        precision: auto (bfloat16 where the device computes in it natively, else float32), 32-true or bf16-mixed.
        out: folder for metrics.json; a new one under outputs/runs by default.
        model: configuration (configs/NAME.yaml) of a checkpoint that does not say what model it holds.
        statistics: dataset_stats_v3.json, for a checkpoint that holds no statistics.
    """
    _look_for(None if ckpt == paths.SOUP else ckpt, data, model, statistics)
    from cryosentinel.evaluation.summary import headline
    from cryosentinel.study.study import Study

    study = Study(preset, out=out, data=data or "", notebook="evaluate", model=model, statistics=statistics)
    changes: dict[str, Any] = {"adaptive": True} if adaptive_flips else {}
    result = study.evaluate(ckpt, flips=flips, precision=precision, **changes)
    source = f"cryosentinel evaluate --ckpt {ckpt}{' --adaptive_flips' if adaptive_flips else ''}"
    entries = headline(result.tables, study.kind, source, tta=flips > 1)
    print(study.metrics.write(entries).to_string())
    print(f"score tables in {result.folder}, figures in {study.metrics.path}")


def audit(
    ckpt: str = "soup.ckpt",
    preset: Preset = "quick",
    data: Path | None = None,
    worst: int = 20,
    control: int = 20,
    review: bool = False,
    answers: Path | None = None,
    out: str = "",
    model: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Judge every disagreement of label and prediction on the test split, and score the corrected labels.

    Args:
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path.
        preset: the simulated chips to audit, and the configuration that splits them.
        data: folder of chips in the published format to audit instead.
        worst: candidates, chips with the largest pieces of disagreement, from both tails in turn.
        control: chips drawn at random beside them.
        review: write a blind review sheet of both, review.html and review.csv, to fill in.
        answers: folder of a review that was filled in; it is read back and compared with the audit's verdicts, by
            sample and verdict, and nothing is audited.
        out: folder for verdicts.csv and pieces.csv, a new one under outputs/runs by default; with ANSWERS for
            answers.csv, ANSWERS itself by default.
        model: configuration (configs/NAME.yaml) of a checkpoint that does not say what model it holds.
        statistics: dataset_stats_v3.json, for a checkpoint that holds no statistics.
    """
    if answers is not None:
        paths.existing(answers / "review.csv", "review")
        from cryosentinel.evaluation.audit_review import agreement, read_review
        from cryosentinel.files import write_text as write

        found = read_review(answers)
        path = (Path(out) if out else answers) / "answers.csv"
        write(path, found.to_csv(index=False))
        print(found.to_string(index=False), agreement(found).round(3).to_string(index=False), path, sep="\n\n")
        return
    _look_for(None if ckpt == paths.SOUP else ckpt, data, model, statistics)
    from cryosentinel.evaluation.audit import independence
    from cryosentinel.evaluation.audit_review import write_review
    from cryosentinel.evaluation.bootstrap import estimate
    from cryosentinel.files import write_text
    from cryosentinel.study.study import Study

    study = Study(preset, out=out, data=data or "", notebook="audit", model=model, statistics=statistics)
    result = study.audit(ckpt, worst=worst, control=control)
    write_text(study.out / "verdicts.csv", result.verdicts.to_csv(index=False))
    write_text(study.out / "pieces.csv", result.pieces.to_csv(index=False))
    print(result.rule, independence(study.datamodule.sanity), sep="\n")
    print(result.pieces.groupby(["direction", "verdict"]).size().to_string())
    for name, table in result.variants().items():
        found = estimate(table, "iou", result.rule.threshold)
        interval = f" [{found.low:.4f}, {found.high:.4f}]" if found.low is not None else f" ({found.reason})"
        print(f"test IoU, {name.replace('_', ' ')}: {found.value:.4f}{interval}, {found.n} chips")
    print(study.out / "verdicts.csv")
    if review:
        print(write_review(result, study.datamodule.store, study.evaluate(ckpt).maps("test"), study.out / "review"))


def predict(
    scenes: list[str],
    ckpt: str | None = None,
    out: Path | None = None,
    threshold: float = 0.5,
    flips: Literal[1, 2, 4] = 4,
    adaptive_flips: bool = False,
    overlap: int = 112,
    batch_size: int = 8,
    s2_offset: int | None = None,
    s1_linear: bool = False,
    precision: Choice = "auto",
    device: str = "cpu",
    model: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Map water over 15-band GeoTIFF scenes of any size.

    Args:
        scenes: GeoTIFFs of 12 Sentinel-2 bands, VV, VH and elevation, projected, 10 m (see: cryosentinel stack).
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path; by default the weights that come
            with the package, trained on simulated chips alone.
        out: folder for SCENE_probability.tif and SCENE_water.tif; outputs/predictions by default.
        threshold: probability from which a pixel is water.
        flips: test-time flips averaged in logit space.
        adaptive_flips: flip only windows whose first pass is undecided: about half the work. Undecided means a
            probability around 0.5, whatever the threshold.
        overlap: pixels that neighbouring windows share.
        batch_size: windows a forward pass.
        s2_offset: digital numbers to subtract from Sentinel-2: 1000 for raw L2A of baseline 04.00 and later.
        s1_linear: the radar is linear power rather than dB.
        precision: auto (bfloat16 where the device computes in it natively, else float32), 32-true or bf16-mixed.
        device: cpu or cuda.
        model: configuration (configs/NAME.yaml) of a checkpoint that does not say what model it holds.
        statistics: dataset_stats_v3.json, for a checkpoint that holds no statistics.
    """
    names = [paths.existing(scene, "raster").stem for scene in scenes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two scenes are named {twice[0]}, and so would be their outputs; rename one.")
    _look_for(ckpt, None, model, statistics)
    _check_threshold(threshold)
    _check_device(device)
    from cryosentinel.mapping.product import chosen_weights
    from cryosentinel.mapping.scene import Options, Scene, predict_scene
    from cryosentinel.models.checkpoint import load_segmenter

    segmenter = load_segmenter(chosen_weights(ckpt), model, statistics, device)
    for scene in scenes:
        result = predict_scene(
            segmenter,
            Scene.of(scene, "", s2_offset, s1_linear),
            out or paths.predictions(),
            threshold=threshold,
            options=Options(
                flips=flips, overlap=overlap, batch_size=batch_size, adaptive=adaptive_flips, precision=precision
            ),
        )
        share = result["water_pixels"] / max(1, result["valid_pixels"])
        print(f"{scene}: {result['water_ha']:.2f} ha of water, {share:.1%} of the valid pixels -> {result['water']}")


def map(
    scenes: list[str] | None = None,
    s2: Path | None = None,
    s1: Path | None = None,
    dem: Path | None = None,
    data: Path | None = None,
    service: str | None = None,
    bbox: str | None = None,
    region: str = "",
    year: int | None = None,
    n_chips: int | None = None,
    ckpt: str | None = None,
    out: Path | None = None,
    threshold: float = 0.5,
    min_area_ha: float = 0.1,
    flips: Literal[1, 2, 4] = 4,
    adaptive_flips: bool = False,
    overlap: int = 112,
    batch_size: int = 8,
    gate: bool = False,
    gate_rules: Path | None = None,
    s2_offset: int | None = None,
    s1_linear: bool = False,
    glaciers: Path | None = None,
    intervals: Path | None = None,
    precision: Choice = "auto",
    device: str = "cpu",
    scheduler: str | None = None,
    workers: int = 2,
    s2_service: str | None = None,
    s1_service: str | None = None,
    dem_service: str | None = None,
    settings: Settings | None = None,
    model: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Map lakes: rasters, outlines with true areas and intervals, a GeoPackage, a metrics file and an offline map.

    It maps water and forecasts nothing; the weights in the box were trained on simulated chips alone.

    Args:
        scenes: 15-band rasters (12 Sentinel-2 bands, VV, VH, elevation) of any size; or give --s2, --s1 and --dem, or
            --data, --region and --year, or a place: --service, --bbox or --region, and --year.
        s2: 12 bands of Sentinel-2 L2A, reflectance x 10,000.
        s1: VV and VH on the same grid, dB.
        dem: elevation on the same grid, metres.
        data: folder of chips in the published format.
        service: where the images of a place come from: planetary-computer, earth-search, cdse, or the address of a
            STAC API.
        bbox: west,south,east,north of a place, degrees.
        region: of the chips; of a place one of the twelve regions, or a name of your own for its files.
        year: of the chips or the place, or of the scenes where they do not say.
        n_chips: the first so many chips; all by default.
        ckpt: a path, a bare name found in the latest run, or hf://owner/repo/path; the packaged weights by default.
        out: folder of the outputs; outputs/predictions by default.
        threshold: probability from which a pixel is water.
        min_area_ha: smaller lakes are left out; below 0.5 ha they are flagged as candidates.
        flips: test-time flips averaged in logit space.
        adaptive_flips: flip only windows whose first pass is undecided: about half the work. Undecided means a
            probability around 0.5, whatever the threshold.
        overlap: pixels that neighbouring windows share; 32 takes a third of the windows, and along their seams moves
            one or two in a hundred water pixels (benchmark seam_error).
        batch_size: windows a forward pass.
        gate: skip windows where no glacial lake can be; off by default: what it skips no network looks at.
        gate_rules: YAML file of the rules; the package's own by default.
        s2_offset: digital numbers to subtract from Sentinel-2: 1000 for raw L2A of baseline 04.00 and later.
        s1_linear: the radar is linear power rather than dB.
        glaciers: file of glacier outlines, for the distance of each lake to the nearest.
        intervals: JSON file of calibrated area intervals; by default those of the packaged weights at the default
            threshold and flips, else bounds come from the outlines' lengths.
        precision: auto (bfloat16 where the device computes in it natively, else float32), 32-true or bf16-mixed.
        device: cpu or cuda.
        scheduler: address of a Dask scheduler, or local (also without a value) for processes of this machine; one
            process without.
        workers: threads that read the images of a place where there is no cluster.
        s2_service: where Sentinel-2 of a place comes from another service.
        s1_service: where Sentinel-1 of a place comes from another service.
        dem_service: where the elevation of a place comes from another service.
        settings: collections, seasons, cloud and radar limits of a place's images.
        model: configuration (configs/NAME.yaml) of a checkpoint that does not say what model it holds.
        statistics: dataset_stats_v3.json, for a checkpoint that holds no statistics.
    """
    rasters = [path for path in (s2, s1, dem) if path is not None]
    ways = bool(scenes), bool(rasters), data is not None, service is not None
    if sum(ways) != 1 or len(rasters) not in (0, 3):
        raise ConfigError(
            "Name what to map in one way: scenes, or --s2, --s1 and --dem, or --data, --region and --year, or "
            "--service, --bbox and --year."
        )
    if data is not None and (not region or year is None):
        raise ConfigError("Chips of a dataset are chosen by --region and --year; give both.")
    if (service is not None and (not (region or bbox) or year is None)) or (bbox and service is None):
        raise ConfigError("A place is chosen by --service, --bbox or --region, and --year; give all three.")
    if scenes is None and not rasters and (s2_offset is not None or s1_linear):
        raise ConfigError("--s2_offset and --s1_linear are for scenes; chips and images of a place need neither.")
    if gate_rules is not None:
        if not gate:
            raise ConfigError("--gate_rules are the rules of the gate, which is off; give --gate, too.")
        paths.config(gate_rules)
    box = None
    if service is not None:
        from cryosentinel import ingest as room

        box = room.parse_box(bbox) if bbox else None
        room.region_box(region or "place", box)
    for path in (*(scenes or ()), *rasters):
        paths.existing(path, "raster")
    for given, what in ((glaciers, "file of glaciers"), (intervals, "file of intervals")):
        if given is not None:
            paths.existing(given, what)
    _look_for(ckpt, data, model, statistics)
    _check_threshold(threshold)
    _check_device(device)
    from cryosentinel.mapping.gate import Gate
    from cryosentinel.mapping.product import chip_scenes, default_weights, map_lakes
    from cryosentinel.mapping.scene import Options, Scene

    out = out or paths.predictions()
    if ckpt is None:
        default_weights()  # said before images are fetched
    rules = Gate.read(gate_rules) if gate else None
    options = Options(
        flips, overlap=overlap, batch_size=batch_size, adaptive=adaptive_flips, gate=rules, precision=precision
    )
    if data is not None:
        assert year is not None
        found = chip_scenes(data, region, year, out / "chips", n_chips)
    elif service is not None:
        from cryosentinel.mapping.place import MOSAIC, place_scenes

        assert year is not None
        own = (s2_service, s1_service, dem_service)
        found = place_scenes(
            year, service, out / "images", box, region, own, settings or MOSAIC,
            None if scheduler == "local" else scheduler, workers,
        )  # fmt: skip
    else:
        found = [Scene.of(scene, "", s2_offset, s1_linear) for scene in ([rasters] if rasters else scenes or [])]
    result = map_lakes(
        found, out, ckpt, threshold, options, min_area_ha, year, glaciers, intervals, model, statistics, device,
        scheduler,
    )  # fmt: skip
    summary, windows = result.summary, result.summary["windows"]
    print(
        f"{summary['lakes']} lakes, {summary['area_ha']:.2f} ha ({summary['area_low_ha']:.2f} to "
        f"{summary['area_high_ha']:.2f}); windows: {windows['run']} run, {windows['gated']} skipped by the gate, "
        f"{windows['no data']} without data"
    )
    pooled = ", ".join(summary["pooled_size_classes"])
    source = f"calibrated on {summary['interval']}" if summary["interval"] else "from the outlines' lengths"
    print(f"Area bounds {source}{f' (size classes pooled: {pooled})' if pooled else ''}; "
          f"{summary['lakes_cut']} lakes are cut and have a lower bound alone.")  # fmt: skip
    if summary["scenes_pictured"] < len(summary["scenes"]):
        print(f"The page shows pictures of {summary['scenes_pictured']} of {len(summary['scenes'])} scenes.")
    print(result.lakes, result.page, sep="\n")


def change(outlines: list[str], out: Path, pixel_m: float = 10.0) -> None:
    """Link the lakes of several years, and call change where it exceeds the intervals of their areas.

    Args:
        outlines: files of one year each (lakes.parquet of map, or any vector file with the year in its name).
        out: folder for outlines.parquet, lakes.csv (fastest growing first) and events.csv.
        pixel_m: pixels that outlines without an interval were drawn from, m.
    """
    for path in outlines:
        paths.existing(path, "file of outlines")
    from cryosentinel.mapping.change import link_years, read_footprints, read_outlines, write_changes

    years = read_outlines(outlines, pixel_m)
    found = link_years(years, footprints=read_footprints(outlines, next(iter(years.values())).crs))
    write_changes(found, out)
    print(found.lakes["call"].value_counts().to_string())
    shown = ["identity", "first_year", "last_year", "first_ha", "last_ha", "rate_ha_a", "call", "note"]
    print(found.lakes[shown].head(10).to_string(index=False))
    print(out / "lakes.csv")


def stack(s2: Path, s1: Path, dem: Path, out: Path, s2_offset: int | None = None, s1_linear: bool = False) -> None:
    """Build the 15-band GeoTIFF that predict takes from three rasters on one grid.

    Args:
        s2: 12 bands of Sentinel-2 L2A, reflectance x 10,000.
        s1: VV and VH.
        dem: elevation in metres.
        out: GeoTIFF to write.
        s2_offset: digital numbers to subtract: 1000 for raw L2A of processing baseline 04.00 and later. Left out, a
            scene that carries this offset is refused; 0 says that it does not.
        s1_linear: the radar is linear power rather than dB.
    """
    for raster in (s2, s1, dem):
        paths.existing(raster, "raster")
    from cryosentinel.data.stack import stack_rasters

    print(stack_rasters(s2, s1, dem, out, s2_offset=s2_offset, s1_linear=s1_linear))


def split(
    data: Path,
    block_size: float = 0.15,
    buffer: float = 0.02,
    rule: Literal["edge", "foreign"] = "edge",
    earlier_block_size: float | None = None,
    out: Path | None = None,
) -> None:
    """Assign chips to hash blocks, and certify what the split promises: overlapping pairs, smallest distance.

    Args:
        data: folder of chips in the published format.
        block_size: side of a block, degrees: 0.15 in the published finetune, 0.25 in the pretraining.
        buffer: degrees; chips whose centre lies nearer to an edge are dropped.
        rule: edge drops at every block edge (published); foreign only at edges to another split.
        earlier_block_size: also report how many validation and test chips a stage split with this size trained on.
        out: CSV of chip_id and split to write.
    """
    _look_for(data=data)
    from cryosentinel.data.split import assign_splits, check_split, check_stages
    from cryosentinel.data.store import ChipStore
    from cryosentinel.files import write_text

    index = ChipStore(data).index
    lat, lon = index["lat"].to_numpy(), index["lon"].to_numpy()
    splits = assign_splits(lat, lon, block_size, buffer, rule=rule)
    print(check_split(lat, lon, splits))
    if earlier_block_size is not None:
        earlier = assign_splits(lat, lon, earlier_block_size, buffer, rule=rule)
        for name, row in check_stages((lat, lon, earlier), (lat, lon, splits)).items():
            print(f"{name}: {row['seen']} of {row['chips']} chips share pixels with the earlier stage's training chips")
    if out is not None:
        write_text(out, index[["chip_id", "region", "year"]].assign(split=splits).to_csv(index=False))
        print(out)


def download(
    out: Path,
    repo: str = "abzal-glw/cryosentinel-glof-v3",
    revision: str = "main",
    regions: list[str] | None = None,
    years: list[int] | None = None,
) -> None:
    """Fetch published chips from the hub, by region and year; a download that broke off goes on.

    Args:
        out: folder of the shards.
        repo: dataset on the hub, owner/name.
        revision: branch, tag or commit; pin a commit for a study.
        regions: only these; all by default.
        years: only these; all by default.
    """
    from cryosentinel.hub import download_dataset

    print(download_dataset(repo, revision=revision, regions=regions, years=years, local_dir=out))


def card(run: Path, study: Path | None = None, name: str = "", push: str = "", really: bool = False) -> None:
    """Write the model card of a run from a study's figures, and put the run on the hub.

    Args:
        run: run folder, whose README.md the card becomes.
        study: folder of the metrics.json; the study's own by default.
        name: of the model; the run's by default.
        push: owner/name of the model on the hub (HF_TOKEN opens it). Without --really it is only said what would go.
        really: send it.
    """
    folder = study or paths.study()
    if not run.is_dir():
        raise ConfigError(f"There is no run folder {run}; check the path.")
    figures, times = (paths.existing(folder / f"{name}.json", "metrics file") for name in ("metrics", "timings"))
    from cryosentinel.files import read_json
    from cryosentinel.hub import push_run
    from cryosentinel.study.model_card import write_model_card

    metrics, presets = read_json(figures), {stage["preset"] for stage in read_json(times).values()}
    print(write_model_card(run, metrics, name or f"cryosentinel-{run.name}", ", ".join(sorted(presets))))
    if push:
        sent = push_run(run, push, dry_run=not really)
        print(f"{'Sent' if really else 'Dry run (send with --really): this would go'} to {push}:")
        print(*(f"{size:>12,}  {path}" for path, size in sent.items()), sep="\n")


def ingest(
    region: str,
    year: int,
    service: str,
    out: Path | None = None,
    inventory: list[Path] | Path | None = None,
    bbox: str | None = None,
    s2_service: str | None = None,
    s1_service: str | None = None,
    dem_service: str | None = None,
    check: bool = False,
    scheduler: str | None = None,
    workers: int = 2,
    allow_failed: bool = False,
    settings: Settings | None = None,
) -> None:
    """Build chips in the published format from a STAC service and a lake inventory; a killed run goes on.

    Args:
        region: one of the twelve regions (ile_alatau, ...), or a name of your own with --bbox.
        year: of the images.
        service: planetary-computer, earth-search, cdse, or the address of a STAC API.
        out: folder of the dataset; chips go to OUT/REGION/YEAR.
        inventory: lake polygons in any format that geopandas reads; of several, the nearest year labels the chips.
            Without one every chip of the box is built, unlabelled, to be predicted on.
        bbox: west,south,east,north in degrees, within the region or in its place.
        s2_service: where Sentinel-2 comes from another service.
        s1_service: where Sentinel-1 comes from another service; earth-search and cdse hold it only without terrain
            correction.
        dem_service: where elevation comes from another service.
        check: read one item and one pixel of each modality, say what would be used, and write nothing.
        scheduler: address of a Dask scheduler, or local (also without a value) for processes of this machine; threads
            by default.
        workers: threads, or processes of a local cluster.
        allow_failed: write the dataset although some groups of chips could not be read.
        settings: collections, seasons, cloud and radar limits.
    """
    files = inventory if isinstance(inventory, list) else [inventory] if inventory else []
    for file in files:
        paths.existing(file, "inventory")
    from cryosentinel import ingest as room

    box = room.parse_box(bbox) if bbox else None
    if check:
        place = room.region_box(region, box)
        found = room.check(
            place, year, service, settings, s2_service=s2_service, s1_service=s1_service, dem_service=dem_service
        )
        print(*found, sep="\n")
        return
    if out is None:
        raise ConfigError("Where to put the chips is missing; give --out FOLDER, or --check to only try the service.")
    result = room.ingest(
        region, year, service, out, files, box, s2_service, s1_service, dem_service, scheduler, workers, settings,
        allow_failed,
    )  # fmt: skip
    print(result.summary())


def convert(src: str, dst: Path, weights: Literal["auto", "ema", "raw"] = "auto") -> None:
    """Turn a checkpoint whose pickle holds foreign objects into safetensors, without running anything that it holds.

    Args:
        src: the checkpoint (.ckpt, .pt): a path, a bare name found in the latest run, or hf://owner/repo/path.
        dst: the .safetensors file to write.
        weights: of a file with raw and averaged weights (EMA) which; auto takes the average where there is one.
    """
    _look_for(src)
    from cryosentinel.models.checkpoint import resolve_checkpoint
    from cryosentinel.models.convert import convert as run

    print(run(resolve_checkpoint(src), dst, weights))


def score(tables: list[Path], val: Path | None = None, threshold: float | None = None, out: Path | None = None) -> None:
    """Score saved tables again, without chips or a network, and compare each with the first.

    Where causes_SPLIT.parquet and lakes_SPLIT.parquet lie beside a table, their strata are scored too.

    Args:
        tables: score tables (RUN/diagnostics/per_chip_test.parquet, ...); several must hold the same chips.
        val: score table on which the threshold is chosen and a temperature fitted.
        threshold: a multiple of 0.005; by default the best on VAL, or 0.5 without one.
        out: folder for scores.json, sweep.csv and chip_sweep.csv (every threshold, in all and chip by chip), chips.csv
            and reliability.csv.
    """
    for table in [*tables, *([val] if val else [])]:
        paths.existing(table, "score table")
    from cryosentinel.evaluation.rescore import as_text, beside, read_named, score_tables, write_report

    validation = None if val is None else next(iter(read_named([val]).values()))
    named = read_named(tables)
    others = {name: beside(path) for name, path in zip(named, tables, strict=True)}
    found = score_tables(named, threshold, validation, others)
    if out is not None:
        write_report(out, found)  # before anything is printed: a pipe that closes early must not cost the files
    print(as_text(found))
    if out is not None:
        print(out)
