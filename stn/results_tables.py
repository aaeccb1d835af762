"""The tables of docs/results.md and README, from the files in results/."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from stn.check import one_of
from stn.errors import InputError
from stn.results import RESULTS, Result, source_of, spread, table
from stn.significance import compare, p_in_words

PUBLISHED_EPOCHS = "640"  # 150,000 steps of 256 (Jaderberg et al. 2015)
WITH_POSE = "measured, pose"  # of transformers that learn from the known distortion
UNMEASURED = "None is measured yet."
Arm = tuple[int, str]  # epochs, and what it is
RECIPE = "does_it_help,arm=transformer,data/distortion=rotation,trainer.max_epochs=6"
# What each trap changes of the recipe, by the setting that makes it.
TRAPS = {
    "model.transformer.classifier_gradient=1": "the classifier's gradient let in",
    "model/warp=similarity": "the angle regressed, instead of chosen among classes; read in one pose, not two",
    "optimizer.localization_lr_scale=1": "one learning rate for all, instead of a tenth for the localization",
    "model.transformer._target_=traps.RandomStart": "a random start, instead of the identity",
    "model.transformer.padding=zeros": "grey beyond the border, which is zero after normalizing",
    "model.transformer._target_=traps.RoundedTheta": "θ in bfloat16",
}


def accuracies(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the presets that are tested once, at their end."""
    rows = [("preset", "parameters", "epochs", "test accuracy", "seeds", "shortest time", "machine")]
    for name, runs in results.items():
        if "," in name or runs[0]["config"]["data"]["validate_on"] == "test":
            continue
        metrics = [run["metrics"] for run in runs]
        fastest = min(runs, key=lambda run: run["metrics"]["seconds"])
        rows.append(
            (
                f"[`{name}`](results/{name})",
                f"{metrics[0]['parameters']:,}",
                str(metrics[0]["epochs"]),
                f"**{spread([one['test_accuracy'] for one in metrics])}**",
                str(len(runs)),
                f"{fastest['metrics']['seconds']:,.0f} s",
                machine(fastest),
            )
        )
    return table(rows)


def gains(results: Mapping[str, Sequence[Result]], presets: Sequence[str], fewest: int = 3) -> str:
    """The table of README: what a transformer wins over the plain network, by test images; empty without any.

    fewest: how many seeds the two networks must have. The means of fewer seeds tell their number.
    """
    others = ("plain", "wider", "ceiling")
    rows: list[Sequence[str]] = [("images", "epochs", *(f"`{one}`" for one in others), "transformer", "gain", "p")]
    for (images, _), group in grouped(results, presets).items():
        for epochs in sorted({epochs for epochs, _ in group}):
            runs = {name: group.get((epochs, f"`{name}`"), []) for name in (*others, "transformer", "window")}
            own = "transformer" if runs["transformer"] else "window"
            if min(len(runs["plain"]), len(runs[own])) < fewest:
                continue
            counts = {name: len(of_arm) for name, of_arm in runs.items()}
            seeds = {name: f" ({count} seed{'s' * (count > 1)})" * (count < fewest) for name, count in counts.items()}
            means = [f"{accuracy_of(runs[one]):.2%}{seeds[one]}" if runs[one] else "" for one in (*others, own)]
            *_, gain, p, _, _, _ = next(row for row in rows_of(group) if row[:2] == (str(epochs), f"`{own}`"))
            rows.append((images, str(epochs), *means[:-1], f"**{means[-1]}**", gain, p))
    return table(rows) if len(rows) > 1 else ""


def arms(results: Mapping[str, Sequence[Result]], presets: Sequence[str]) -> str:
    """The table of the arms of some presets, by test images and network; empty without any.

    A number of epochs is shown if an arm with a transformer or a search has been trained for it, and has a `rival`.
    """
    head = ("images", "epochs", "arm", "channels", "test accuracy", "seeds", "gain", "p", "corners", "angle", "time")
    rows: list[Sequence[str]] = [head]
    for (images, _), group in grouped(results, presets).items():
        shown = set()
        for one in group:
            plain = rival(one, group)
            if plain and not one[1].startswith(("`plain`", "`wider`", "`ceiling`")):
                shown |= {one[0], plain[0]}
        rows += [(images, *row) for row in rows_of({one: runs for one, runs in group.items() if one[0] in shown})]
    return table(rows) if len(rows) > 1 else ""


def grouped(
    results: Mapping[str, Sequence[Result]], presets: Sequence[str]
) -> dict[tuple[str, str], dict[Arm, Sequence[Result]]]:
    """The arms of some presets, by the images that they are tested on and the settings of their network.

    Raises InputError for two results of one arm.
    """
    groups: dict[tuple[str, str], dict[Arm, Sequence[Result]]] = defaultdict(dict)
    for name, runs in ((name, results[name]) for one in presets for name in results if name.partition(",")[0] == one):
        config = runs[0]["config"]
        is_whole = not config["data"].get("subset")
        if config["arm"] and is_whole and not trap_of(name):
            images, arm = seen(config["data"], config["arm"])
            network = " ".join(re.findall(r"model\.classifier\.\w+=(?:\[.*?\]|[^,]*)", name))
            group, key = groups[images, network], (runs[0]["metrics"]["epochs"], arm)
            if key in group:
                raise InputError(f"{name}: there is another result of its arm on these images: keep one of them")
            group[key] = runs
    return groups


def rows_of(group: Mapping[Arm, Sequence[Result]]) -> list[Sequence[str]]:
    """The rows of the arms of one group, by epochs and accuracy, with the gain over the arm that `rival` gives."""
    accuracies = {arm: {run["seed"]: run["metrics"]["test_accuracy"] for run in group[arm]} for arm in group}
    rows: list[Sequence[str]] = []
    for arm in sorted(group, key=lambda arm: (arm[0], accuracy_of(group[arm]))):
        gain, p = "", ""
        plain = rival(arm, group)
        if plain and arm != plain:
            gain = f"{100 * (accuracy_of(group[arm]) - accuracy_of(group[plain])):+.2f}"
            found = compare(accuracies[arm], accuracies[plain])[1]
            p = "" if found is None else p_in_words(found)
        metrics, config = [run["metrics"] for run in group[arm]], group[arm][0]["config"]
        channels = ", ".join(map(str, config["model"]["classifier"]["widths"]))
        is_turned = (config["data"]["distortion"] or {}).get("rotation")
        keys = {"corner_error_pixels": "px"} | ({"angle_error_degrees": "°"} if is_turned else {})
        errors = {
            key: f"{mean(one[f'test_transformer_{key}'] for one in metrics):.1f} {unit}"
            for key, unit in keys.items()
            if f"test_transformer_{key}" in metrics[0]
        }
        corners, angle = (errors.get(key, "") for key in ("corner_error_pixels", "angle_error_degrees"))
        accuracy, seeds = spread(list(accuracies[arm].values())), str(len(metrics))
        time = f"{seconds_of(group[arm]):,.0f} s"
        rows.append((str(arm[0]), arm[1], channels, accuracy, seeds, gain, p, corners, angle, time))
    return rows


def rival(arm: Arm, group: Mapping[Arm, Sequence[Result]]) -> Arm | None:
    """The best plain network of as many epochs, else the best one that took as long or longer; None without any."""
    plain = [other for other in group if other[1].startswith("`plain`")]
    equals = [other for other in plain if other[0] == arm[0]]
    longer = [other for other in plain if seconds_of(group[other]) >= seconds_of(group[arm])]
    return max(equals or longer, key=lambda other: accuracy_of(group[other]), default=None)


def accuracy_of(runs: Sequence[Result]) -> float:
    """The mean test accuracy of some runs."""
    return mean(run["metrics"]["test_accuracy"] for run in runs)


def seconds_of(runs: Sequence[Result]) -> float:
    """The shortest time of some runs."""
    return float(min(run["metrics"]["seconds"] for run in runs))


def seen(data: Mapping[str, Any], arm: str) -> tuple[str, str]:
    """The images that an arm is tested on, and the arm, with what it is trained on if that differs, in words."""
    trained = warp_of(data["distortion"] or {})
    tested = warp_of(data["test_distortion"]) if data.get("test_distortion") else trained
    source = source_of(data)
    images = tested if source == "cifar10" else f"{source}, {tested}"
    return images, f"`{arm}`" + f", trained on images {trained}" * (trained != tested)


def traps(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the traps, beside the recipe that walks into none."""
    rows = [("trap", "set by", "test accuracy", "corners", "angle", "seeds")]
    for name, runs in results.items():
        trap = trap_of(name)
        if name == RECIPE or trap:
            changed = sorted(set(name.split(",")) - set(RECIPE.split(",")))
            said = (TRAPS[trap] if trap else "none", " ".join(f"`{setting}`" for setting in changed))
            metrics = [run["metrics"] for run in runs]
            accuracy = spread([one["test_accuracy"] for one in metrics])
            corners, angle = (
                mean(one[f"test_transformer_{key}"] for one in metrics)
                for key in ("corner_error_pixels", "angle_error_degrees")
            )
            rows.append((*said, accuracy, f"{corners:.1f} px", f"{angle:.1f} °", str(len(runs))))
    return table([rows[0], *sorted(rows[1:], key=lambda row: row[2], reverse=True)]) if len(rows) > 1 else UNMEASURED


def trap_of(name: str) -> str | None:
    """The trap that an experiment walks into, which is otherwise the recipe; None for any other experiment."""
    changed = (set(name.split(",")) ^ set(RECIPE.split(","))) - {"tta=null"}  # a regressed angle has no second best
    return changed.pop() if len(changed) == 1 and changed <= TRAPS.keys() else None


def warp_of(distortion: Mapping[str, Any]) -> str:
    """What a distortion does to an image, in a few words."""
    said = []
    if distortion.get("rotation"):
        said.append(f"turned ±{distortion['rotation']:g}°")
    if distortion.get("scale", [1.0, 1.0]) != [1.0, 1.0]:
        said.append("scaled {:g} to {:g}".format(*distortion["scale"]))
    if distortion.get("aspect", 1) != 1 or distortion.get("shear"):
        said.append("stretched, sheared")
    if distortion.get("displacement"):
        what = "corners along their diagonals" if distortion.get("along_diagonal") else "points"
        said.append(f"{what} displaced by {distortion['displacement']:g} px")
    shift = distortion.get("shift", 0)
    if shift != 0:
        said.append("anywhere" if shift is None else f"shifted ±{shift / 2:.0%}")
    if distortion.get("canvas"):
        said.append(f"on {distortion['canvas']} × {distortion['canvas']}")
    if distortion.get("pieces"):
        said.append(f"among {distortion['pieces']} pieces of others")
    return ", ".join(said) or "upright"


def digits(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the errors on distorted digits, as published and as measured; with those of the pose, if known."""
    columns = ("R", "RTS", "P", "E", "TC")
    rows: list[Sequence[str]] = [("network", "warp", "", "epochs", *columns, "seeds")]
    for row in json.loads((RESULTS / "jaderberg2015.json").read_text(encoding="utf-8")):
        published = (str(row.get(column, "")) for column in columns)
        rows.append((row["network"], row["warp"], "published", PUBLISHED_EPOCHS, *published, "3"))
    found: dict[tuple[str, str, str, int], dict[str, Sequence[Result]]] = defaultdict(dict)
    for name, runs in results.items():
        if name.partition(",")[0] == "distorted_mnist" and not runs[0]["config"]["data"].get("subset"):
            model, weight = runs[0]["config"]["model"], runs[0]["config"]["pose_weight"]
            network = "FCN" if model["classifier"]["_target_"].endswith("FullyConnected") else "CNN"
            has_transformer = model["placement"] != "none"
            warp = model["warp"]["_target_"].rpartition(".")[2] if has_transformer else ""
            epochs = int(runs[0]["metrics"]["epochs"])
            row = ("ST-" * has_transformer + network, warp, WITH_POSE if weight else "measured", epochs)
            if kind := kind_of(runs[0]["config"]["data"]["distortion"] or {}):
                if kind in found[row]:
                    raise InputError(
                        f"{name}: there is another result of {' '.join(map(str, row))} on {kind}: keep one of them"
                    )
                found[row][kind] = runs
    for row, of_kinds in sorted(found.items()):
        cells = []
        for column in columns:
            metrics = [run["metrics"] for run in of_kinds.get(column, ())]
            errors_of_pose = [
                f"{mean(one[f'test_transformer_{key}'] for one in metrics):.1f} {unit}"
                for key, unit in {"corner_error_pixels": "px", "angle_error_degrees": "°"}.items()
                if row[2] == WITH_POSE and metrics
            ]
            errors = [100 * (1 - one["test_accuracy"]) for one in metrics]
            cells.append("; ".join([spread(errors, ".2f"), *errors_of_pose]) if errors else "")
        seeds = sorted({len(runs) for runs in of_kinds.values()})
        rows.append((*row[:3], str(row[3]), *cells, one_of(seeds)))
    return table(rows) + f"\n\n{UNMEASURED}" * (not found)


def little(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the networks that are trained on a few images, whose last epoch is tested."""
    arms = {"plain": "plain", "labels": "transformer, labels", "transformer": "transformer, pose"}
    found: dict[tuple[str, str, str, int, int], dict[str, Sequence[Result]]] = defaultdict(dict)
    for name, runs in results.items():
        config, (preset, *_) = runs[0]["config"], name.split(",")
        subset = config["data"].get("subset")
        if not subset or "checkpoint" in config["callbacks"]:
            continue
        arm = config["arm"] or ("labels", "transformer")[config["pose_weight"] > 0]
        arm = "plain" if config["model"]["placement"] == "none" and not config["arm"] else arm
        if arm in arms:
            network = config["model"]["classifier"]["_target_"].rpartition(".")[2]
            key = (preset, network, warp_of(config["data"]["distortion"] or {}), subset, runs[0]["metrics"]["epochs"])
            if arm in found[key]:
                raise InputError(f"{name}: there is another result of {arm} on {subset} images: keep one of them")
            found[key][arm] = runs
    rows: list[Sequence[str]] = [("preset", "network", "images", "number", "epochs", *arms.values(), "seeds")]
    for (preset, network, warp, subset, epochs), of_arms in sorted(found.items()):
        accuracies = [[run["metrics"]["test_accuracy"] for run in of_arms.get(arm, ())] for arm in arms]
        seeds = sorted({len(values) for values in accuracies} - {0})
        cells = [spread(values, ".1%") if values else "" for values in accuracies]
        rows.append((f"`{preset}`", network, warp, f"{subset:,}", f"{epochs:,}", *cells, one_of(seeds)))
    return table(rows) if len(rows) > 1 else UNMEASURED


def kind_of(distortion: Mapping[str, Any]) -> str | None:
    """The paper's name of a distortion of digits: R, RTS, P, E or TC. None for another one."""
    family, canvas = str(distortion.get("_target_")).rpartition(".")[2], distortion.get("canvas")
    if family == "AffineDistortion":
        is_rotation = canvas is None and distortion["rotation"] == 90 and distortion["scale"] == [1.0, 1.0]
        return "R" if is_rotation else {42: "RTS", 60: "TC"}.get(canvas or 0)
    if family == "ProjectiveDistortion":
        return "P" if distortion.get("along_diagonal") else None
    return "E" if family == "ElasticDistortion" else None


def colocalized() -> str:
    """The table of the co-localizations; empty without any."""
    groups: dict[tuple[str, int, int], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((RESULTS / "colocalization").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        clutter = one["data"]["distortion"]
        groups[one["images_of"], clutter["pieces"], clutter["piece_size"]][one["category"]].append(one)
    rows = [("images", "pieces", "encoder's accuracy", "found, by class", "seeds", "shortest time")]
    for (kind, pieces, size), of_classes in groups.items():
        shares = {category: [one["found"] for one in found] for category, found in of_classes.items()}
        best = sorted(shares, key=lambda category: -mean(shares[category]))
        every = [one for found in of_classes.values() for one in found]
        rows.append(
            (
                kind,
                f"{pieces} of {size} × {size}" if pieces else "none",
                spread(sorted({one["encoder_test_accuracy"] for one in every}), ".1%"),
                ", ".join(f"`{category}` {spread(shares[category], '.0%')}" for category in best),
                one_of(sorted({len(found) for found in of_classes.values()})),
                f"{min(one['seconds'] for one in every):,.0f} s",
            )
        )
    return table(rows) if len(rows) > 1 else ""


def systems(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the published systems, and of what is made of them."""
    rows = [("preset", "parameters", "epochs", "published", "measured: best", "last", "seeds")]
    for name, published in json.loads((RESULTS / "published.json").read_text(encoding="utf-8")).items():
        runs = results.get(name, [])
        said = [f"{key} {published[key]:.2%}" for key in ("best", "last") if key in published]
        if not runs:
            continue
        best = [max(run["curve"], key=lambda row: row["val/accuracy"]) for run in runs]
        epochs = ", ".join(f"{row['epoch']:.0f}" for row in best)
        rows.append(
            (
                f"[`{name}`](results/{name})",
                f"{runs[0]['metrics']['parameters']:,}",
                str(runs[0]["metrics"]["epochs"]),
                ", ".join(said) or "none",
                f"{spread([row['val/accuracy'] for row in best])} (epoch {epochs})",
                spread([run["curve"][-1]["val/accuracy"] for run in runs]),
                str(len(runs)),
            )
        )
    return table(rows)


def changes(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the experiments that are a preset with other settings, beside the preset."""
    rows = [("preset", "changed", "test accuracy", "unchanged", "seeds")]
    for name, runs in results.items():
        preset, _, settings = name.partition(",")
        without = {run["seed"]: run["metrics"]["test_accuracy"] for run in results.get(preset, [])}
        pairs = [(run["metrics"]["test_accuracy"], without[run["seed"]]) for run in runs if run["seed"] in without]
        if settings and pairs:
            shown = " ".join(f"`{setting}`" for setting in re.findall(r"(?:\[.*?\]|[^,])+", settings))
            here, there = (spread(found) for found in zip(*pairs, strict=True))
            rows.append((f"[`{preset}`](results/{preset})", shown, here, there, str(len(pairs))))
    return table(rows)


def machine(run: Result) -> str:
    """The machine of a run in a few words."""
    found = run["machine"]
    if "gpu" in found:
        return str(found["gpu"])
    fast = next((feature for feature in found["features"] if "bf16" in feature), "no bfloat16")
    return f"{found['processor']} ({fast}), {found['threads']} thread{'s' * (found['threads'] > 1)}"
