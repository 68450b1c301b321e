"""Which outputs a compiled network gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slimc import ir
from slimc.errors import OptionError
from slimc.files.outputs import OutputFacts, describe_output
from slimc.models.system import Network


def read_names(said: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of outputs, of which a text holds several with commas between them; none where nothing was said."""
    if said is None:
        return None
    return tuple(name.strip() for name in said.split(",")) if isinstance(said, str) else tuple(said)


def with_outputs(network: Network, names: Sequence[str] | None, option: str = "--outputs") -> Network:
    """`network`, which no pass has changed, with these outputs; with those of its front end where there are no `names`.

    Raises:
        OptionError: it has no such output; the message begins with what asked for it, `option`.
    """
    if names is None or tuple(names) == names_of(network):
        return network
    if network.read is None:
        raise OptionError(f"{option}: {network.system.title} networks give logits only; leave it out")
    try:
        masked = ir.choose_outputs(network.masked, names)
        dense = masked if network.dense is network.masked else ir.choose_outputs(network.dense, names)
    except OptionError as error:
        raise OptionError(f"{option}: {str(error).removeprefix('--outputs: ')}") from None
    return replace(network, masked=masked, dense=dense)


def names_of(network: Network) -> tuple[str, ...]:
    """The names of a network's outputs, in order."""
    return tuple(output.name for output in network.masked.outputs)


def describe(model: ir.Model, batch_size: int) -> tuple[OutputFacts, ...]:
    """What the outputs of `model`, which no pass has changed, are for batches of this size."""
    return tuple(describe_output(output.name, (batch_size, *_shape(model, output))) for output in model.outputs)


def _shape(model: ir.Model, output: ir.Output) -> tuple[int, ...]:
    """The shape of an output for one image."""
    if output.kind == "logits":
        return (model.classes,)
    if output.kind == "features":
        return (_features(model.classifier, model.dim),)
    if output.layout == "NCHW":
        return (model.dim, *model.grid)
    assert output.rows is not None
    return (len(output.rows), model.dim)


def _features(classifier: ir.Classifier, dim: int) -> int:
    """How many features there are."""
    if classifier.pre_logits is not None:
        return len(classifier.pre_logits.weight)
    joined = isinstance(classifier.pool, ir.Pool) and classifier.pool.kind == "token+avg"
    return 2 * dim if joined else dim
