"""What a network is told beside time, and whether its task has that to tell. Needs no JAX."""

from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from training.components import ConfigError, parse

# Tasks that model images and have labels to tell, beside what they make themselves. They have no
# CLIP: that is the task 'decoder'.
LABELS_ALONE = (
    "diffusion",
    "super_resolution",
    "progressive",
    "guidance_distillation",
    "consistency",
    "scm",
    "meanflow",
    "shortcut",
)
# Fields by which networks of images are told what those tasks lack, with their value without it,
# and the network of the same kind that is told it.
_OF_CLIP = {
    "unet": ({"context": "none", "embedding_dim": 0}, "unclip_decoder"),
    "dit": ({"embedding_dim": 0}, "unclip_dit"),
}
_DECODERS = tuple(decoder for _, decoder in _OF_CLIP.values())


def check(config: ConfigDict) -> Iterator[str]:
    """Mistakes in what the network is told: a line each, without its first 'config.'."""
    try:
        task = parse(config.task).name
    except ConfigError:
        task = ""  # components.check says what is wrong with it
    if task in LABELS_ALONE:
        yield from _check_told(config)
    yield from _check_label(config)


def _check_told(config: ConfigDict) -> Iterator[str]:
    """Seen here, so that no network is compiled that the first step has nothing to tell."""
    model = config.model
    fields, decoder = _OF_CLIP.get(model.name, ({}, ""))
    for field, untold in fields.items():
        if model[field] != untold:
            yield (
                f"model.{field} = {model[field]!r}: must be {untold!r} with config.task = "
                f"{config.task!r}, which has nothing to tell there; config.task='decoder(...)' "
                f"tells config.model.name={decoder!r} of a CLIP embedding and a caption"
            )
    if model.name in _DECODERS:
        yield (
            f"model.name = {model.name!r}: is told of a CLIP embedding and a caption, which "
            f"config.task = {config.task!r} has not; set config.task='decoder(...)'"
        )
    if model.get("augment_dim", 0) and not config.data.device_augmentation:
        yield (
            f"model.augment_dim = {model.augment_dim}: must be 0 with "
            "config.data.device_augmentation = '', which makes what the network is told there"
        )


def _check_label(config: ConfigDict) -> Iterator[str]:
    model, sample = config.model, config.sample
    classes, null_class = model.get("num_classes", 0), model.get("null_class", False)
    if null_class and not classes:
        yield "model.null_class = True: needs classes; set config.model.num_classes"
    # A prior knows "no caption" in place of "no label", a decoder that or "no image embedding".
    null_text = model.get("null_text", model.name in _DECODERS)
    yield from _check_guidance(sample.guidance, null_class or null_text)
    dropout = config.diffusion.label_dropout
    if dropout and not null_class:
        yield (
            f"diffusion.label_dropout = {dropout!r}: must be 0, or set config.model.null_class=True"
        )
    # A classifier may have classes where the network has none; `sample_labels` checks those.
    by_classifier = any(name.startswith("classifier(") for name in sample.guidance)
    if sample.labels != "cycle" and not (by_classifier and not classes):
        label = int(sample.labels) if sample.labels.isdecimal() else -1
        if not 0 <= label < classes:
            yield (
                f"sample.labels = {sample.labels!r}: must be 'cycle'"
                + (f" or a class from '0' to '{classes - 1}'" if classes else "")
            )


def _check_guidance(names: Sequence[str], null_class: bool) -> Iterator[str]:
    """Seen here, so that a run does not train until its first preview to find it out."""
    for name in names:
        try:
            call = parse(name)
        except ConfigError:
            continue  # components.check says what is wrong with it
        compares = call.name in ("classifier_free", "cfg_plus_plus", "adaptive_projected")
        if compares and "negative" not in call.arguments and not null_class:
            yield (
                f"sample.guidance = {name!r}: compares with 'no label'; set "
                "config.model.null_class=True, give it negative=..., or take ()"
            )
