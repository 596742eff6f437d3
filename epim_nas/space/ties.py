"""Ties: which layers share one choice.

``stages``: convolutions with the same output size and the same kernel. He et al., "Deep Residual
Learning for Image Recognition" (CVPR 2016), table 1, call the layers of one output size a stage.

``residual``: layers whose outputs are added to one another. A sum's inputs are followed back
through whatever has no weight (pooling, other sums), so all convolutions that write to one residual
stream are partners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from epim_nas.epitome.design import Choice
from epim_nas.errors import InputError
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.space.config import LimitedTie, SpaceConfig, Tie
from epim_nas.space.options import AnyOption, shown
from epim_nas.space.patterns import check_patterns, matches_any


@dataclass(frozen=True)
class TiedLayers:
    """Layers with one decision.

    Attributes:
        layers: the layers, in network order.
        source: which tie of the file made them so, empty for a layer by itself.
    """

    layers: tuple[LayerSpec, ...]
    source: str = ""


def tied_layers(config: SpaceConfig, network: Network) -> list[TiedLayers]:
    """All layers with a weight, by the decision that they share, in network order.

    Raises:
        InputError: a pattern that matches no layer, or a layer that two ties claim.
    """
    owner: dict[str, tuple[int, int]] = {}
    for number, tie in enumerate(config.ties):
        field = f"search space {config.name}: ties.{number}"
        for part, names in enumerate(_groups(tie, network, field)):
            for name in names:
                if name in owner:
                    other = owner[name][0]
                    raise InputError(
                        field,
                        f"contradictory ties: the layer `{name}` is claimed by "
                        f"ties.{other} ({_words(config.ties[other])}) and by ties.{number} "
                        f"({_words(tie)})",
                        "every layer in at most one tie",
                        "Limit a tie to some layers, e.g. `- {stages: layer1.*}`, or leave one "
                        "out.",
                    )
                # Within one tie no layer is in two groups.
            owner |= dict.fromkeys(names, (number, part))
    groups: dict[object, list[LayerSpec]] = {}
    for layer in network.weighted:
        groups.setdefault(owner.get(layer.name, layer.name), []).append(layer)
    return [
        TiedLayers(tuple(layers), "" if isinstance(key, str) else _source(config, key))
        for key, layers in groups.items()
    ]


def _source(config: SpaceConfig, key: object) -> str:
    assert isinstance(key, tuple)
    return f"ties.{key[0]} ({_words(config.ties[key[0]])})"


def _words(tie: Tie) -> str:
    if isinstance(tie, LimitedTie):
        word = "residual" if _is_residual(tie) else "stages"
        return f"{word} among {', '.join(_patterns(tie))}"
    return tie if isinstance(tie, str) else ", ".join(tie)


def _is_residual(tie: Tie) -> bool:
    return tie == "residual" or (isinstance(tie, LimitedTie) and tie.residual is not None)


def _patterns(tie: LimitedTie) -> list[str]:
    given = tie.residual if tie.stages is None else tie.stages
    assert given is not None
    return [given] if isinstance(given, str) else given


def _groups(tie: Tie, network: Network, field: str) -> list[list[str]]:
    """The names of the layers in each group of a tie; groups found by a word have several."""
    names = [layer.name for layer in network.weighted]
    if isinstance(tie, list):
        check_patterns(tie, network, field)
        return [[name for name in names if matches_any(name, tie)]]
    if isinstance(tie, LimitedTie):
        patterns = _patterns(tie)
        check_patterns(patterns, network, field)
        names = [name for name in names if matches_any(name, patterns)]
    groups = residual_partners(network) if _is_residual(tie) else stages(network)
    limited = [[name for name in group if name in names] for group in groups]
    shared = [group for group in limited if len(group) > 1]
    if not shared:
        raise InputError(
            field,
            f"`{_words(tie)}` ties no layers of {network.name}: no two of them "
            + (
                "are added to one another"
                if _is_residual(tie)
                else "have the same output and kernel"
            ),
            hint="Leave the tie out.",
        )
    return shared


def stages(network: Network) -> list[list[str]]:
    """Names of the convolutions by output size and kernel, in network order."""
    groups: dict[object, list[str]] = {}
    for layer in network.weighted:
        if layer.type == "conv":
            groups.setdefault((layer.output_size, layer.kernel), []).append(layer.name)
    return list(groups.values())


def residual_partners(network: Network) -> list[list[str]]:
    """Names of the layers with a weight whose outputs are added, in network order.

    An input of one pixel to a join of larger maps is a gate that scales channels (squeeze and
    excitation); the network's description has no other sign of a product. It is no partner.
    """
    writers: dict[str, tuple[str, ...]] = {network.input_name: ()}
    root = {layer.name: layer.name for layer in network.weighted}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for layer in network.layers:
        if layer.has_weight:
            writers[layer.name] = (layer.name,)
            continue
        inputs = layer.inputs
        if layer.type == "element_sum":
            inputs = tuple(name for name in inputs if not _is_gate(name, layer, network))
        found = tuple(dict.fromkeys(name for source in inputs for name in writers[source]))
        writers[layer.name] = found
        if layer.type == "element_sum":
            for name in found[1:]:
                root[find(name)] = find(found[0])
    groups: dict[str, list[str]] = {}
    for layer in network.weighted:
        groups.setdefault(find(layer.name), []).append(layer.name)
    return list(groups.values())


def _is_gate(name: str, join: LayerSpec, network: Network) -> bool:
    if name == network.input_name:
        return False
    return network[name].output_size == (1, 1) != join.output_size


def common_options(
    tie: TiedLayers, options: Mapping[str, Mapping[AnyOption, Choice]], field: str
) -> list[AnyOption]:
    """The options that all layers of a tie have, in the first layer's order.

    Raises:
        InputError: there is none; the message names the layers that exclude one another.
    """
    names = [layer.name for layer in tie.layers]
    common = [o for o in options[names[0]] if all(o in options[name] for name in names)]
    if common:
        return common
    apart = next(
        ((a, b) for a, b in combinations(names, 2) if not set(options[a]) & set(options[b])), None
    )
    if apart is not None:
        first, second = apart
        problem = (
            f"`{first}` and `{second}` exclude one another: `{first}` allows "
            f"{_difference(options[first], options[second])}"
        )
    else:
        allowed = "; ".join(f"`{name}` allows {shown(list(options[name]))}" for name in names[:4])
        problem = f"any two of them have some, but not all together: {allowed}"
    raise InputError(
        f"{field}: {tie.source}: {', '.join(names[:4])}"
        + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        f"the tied layers have no choice in common: {problem}",
        hint="Give them the same lists in `rules`, or limit the tie to some of them, e.g. "
        "`- {stages: layer1.*}`.",
    )


def _difference(first: Mapping[AnyOption, Choice], second: Mapping[AnyOption, Choice]) -> str:
    """What two layers allow: the first key in which they have nothing in common, else options."""
    for key, words in (("weight_bits", "weight bits"), ("activation_bits", "activation bits")):
        ours = sorted({getattr(option, key) for option in first})
        theirs = sorted({getattr(option, key) for option in second})
        if not set(ours) & set(theirs):
            return f"{_listed(ours)} {words}, the other {_listed(theirs)}"
    return f"{shown(list(first))}, the other {shown(list(second))}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
