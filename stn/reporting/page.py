"""Makes one HTML page of a run: what was trained, its curves and pictures, its evaluation, and how to repeat it."""

from html import escape
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import DictConfig

from stn.evaluation import Evaluation, evaluate
from stn.evaluation_files import share
from stn.reporting import about, evaluated
from stn.reporting.epochs import curves, galleries, read_epochs
from stn.reporting.parts import Section, cell, paragraph
from stn.robustness import SWEEPS
from stn.run import Run
from stn.untrusted import LARGEST_EVALUATION, read_json

SWEEP_IMAGES = 500  # each is scored in dozens of warps
TEMPLATE = Path(__file__).with_name("page.html")


def make_page(run: Run, config: DictConfig, *, robustness: bool = True) -> str:
    """Evaluates a run's network on the test set of a config, and returns the page. It writes nothing.

    robustness: whether the accuracy on turned, enlarged and moved images is found, which takes most of the time.
    Raises InputError for data that does not suit the network, and for files of the run that cannot be read.
    """
    # First what is read, since a file that cannot be read costs no evaluation then.
    epochs = read_epochs(run.folder)
    pictures = galleries(run.folder, epochs)
    trained, text = about.environment(run.folder), about.read_config_text(run.folder)
    evaluation = evaluated_with_sweeps(run, config) if robustness else evaluate(run, config)
    numbers = evaluation.numbers
    sections = [
        curves(epochs),
        *transformer_sections(evaluation, pictures),
        evaluated.classes(numbers),
        evaluated.confusion(numbers),
        evaluated.calibration(numbers),
        evaluated.mistakes(evaluation),
        evaluated.robustness(numbers),
        about.repetition(trained, numbers["provenance"], text),
    ]
    facts = about.facts(run, config, numbers, trained)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(about.title(config)),
        accuracy=share(numbers["accuracy"]),
        images=f"{numbers['images']:,} test images",
        facts="".join(f"<div><dt>{name}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items()),
        remark="" if "test_accuracy" in run.metrics else paragraph(unfinished(run)),
        links="".join(f'<li><a href="#{one.name}">{escape(one.title)}</a></li>' for one in sections),
        sections="\n".join(map(str, sections)),
        command=escape(numbers["provenance"]["command"]),
        date=numbers["provenance"]["date"][:10],
    )


def evaluated_with_sweeps(run: Run, config: DictConfig) -> Evaluation:
    """A run's network on the test set, with the accuracy on warped images, which RUN/evaluation may have already."""
    known = read_evaluation(run)
    if known:
        evaluation = evaluate(run, config)
        # The same confusion and loss are those of the same network, images and views.
        if all(known[key] == evaluation.numbers[key] for key in ("confusion", "loss")):
            evaluation.numbers.update({key: known[key] for key in ("robustness", "robustness_images")})
            return evaluation
    return evaluate(run, config, sweeps=list(evaluated.TICKS), sweep_images=SWEEP_IMAGES)


def read_evaluation(run: Run) -> dict[str, Any]:
    """What RUN/evaluation has of confusion, loss and robustness; empty unless it is of these weights, and complete."""
    try:
        found = read_json(run.folder / "evaluation" / "evaluation.json", LARGEST_EVALUATION)
        if (found["epoch"], found["split"]) != (run.epoch, "test"):
            return {}
        curves = {
            name: [{key: float(point[key]) for key in ("value", "accuracy")} for point in found["robustness"][name]]
            for name in evaluated.TICKS
        }
        count = int(found["robustness_images"])
        known = {key: found[key] for key in ("confusion", "loss")} | {"robustness": curves, "robustness_images": count}
    except (OSError, ValueError, TypeError, KeyError):  # it is not there, without these sweeps, or of another version
        return {}
    whole = all([point["value"] for point in curve] == list(SWEEPS[name].values) for name, curve in curves.items())
    return known if whole else {}


def unfinished(run: Run) -> str:
    """That a run is not finished."""
    epochs = run.settings().trainer.max_epochs
    return f"The training is not finished: this is the network after epoch {run.epoch} of {epochs}."


def transformer_sections(evaluation: Evaluation, pictures: str) -> list[Section]:
    """What the transformers of a network read. pictures: of the epochs."""
    if not evaluation.numbers["transformers"]:
        return [
            Section("warps", "What it reads", paragraph("The network has no transformer: it reads the whole image."))
        ]
    if pictures:
        said = "Validation images with an outline of the region that the transformer reads, its upper side in yellow; "
        pictures = paragraph(f"{said}below each one, the image as it is warped.") + pictures
    else:
        pictures = paragraph("The run has kept no pictures of its epochs.")
    return [
        Section("warps", "What it reads, epoch by epoch", pictures + evaluated.transformers(evaluation.numbers)),
        examples(evaluation),
        evaluated.means(evaluation),
    ]


def examples(evaluation: Evaluation) -> Section:
    """Test images, over which a slider wipes what the transformer reads of them."""
    said = "Test images with the region that is read, and what becomes of it. Below: the class that the network sees."
    if evaluation.class_means is None:
        said += " The transformer reads a feature map; here it warps the image itself."
    name = "How much of each image is shown as the transformer reads it"
    slider = f'<input type="range" aria-label="{name}" min="0" max="100" value="50">'
    controls = f'<div class="controls"><span>original</span>{slider}<span>as it is read</span></div>'
    cells = "".join(cell(one, "over") for one in evaluation.examples)
    body = f'<div class="wipes">{controls}<div class="cells">{cells}</div></div>'
    return Section("examples", "Before and after", paragraph(said) + body)
