"""From a search space and the layers of its architectures to landscapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from autocompress.graph.view import Layer, LayerView
from autocompress.landscape import Effect, Landscape, Site
from autocompress.methods import METHODS
from autocompress.plan import ARCHITECTURE, Scalar, Settings, Stage
from autocompress.planner import Planner
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, SearchSpace, neutral

Answers = dict[str, Scalar]


def landscape(space: SearchSpace, plan: Planner, view: LayerView, profile: HardwareProfile) -> Landscape:
    """The landscape of an architecture.

    Args:
        space: Where the methods are.
        plan: The planner of the space.
        view: The layers of the architecture.
        profile: The machine.
    """
    methods = sorted((METHODS[name]() for name in space.methods), key=lambda method: method.turn)
    sites: list[Site] = []
    effects, keeps = [], []
    for turn, method in enumerate(methods):
        for layer, options in _sites(method.name, plan, view.architecture):
            told = []
            for option in options:
                settings = _settings(method.name, plan, view.architecture, option)
                if settings is not None and layer in settings:
                    effect = _effect(view, method.leaves(view, settings, profile))
                    told.append((option, settings[layer], replace(effect, recovers=method.needs_recovery(settings))))
            if told:
                early = method.stage < Stage.VALUES
                answers, own, told_effects = zip(*told, strict=True)
                sites.append(Site(method.name, layer, turn, early, ({}, *answers), ({}, *own)))
                effects.append((Effect(), *told_effects))
        places = tuple(number for number, site in enumerate(sites) if site.method == method.name)
        most = {name: value for number in places for name, value in sites[number].options[-1].items()}
        if places and sites[places[-1]].layer not in (_settings(method.name, plan, view.architecture, most) or {}):
            keeps.append(places)
    return Landscape(
        view.architecture,
        tuple(sites),
        tuple(effects),
        tuple(layer.name for layer in view.layers),
        tuple(layer.kind for layer in view.layers),
        tuple(layer.macs for layer in view.layers),
        tuple(layer.parameters for layer in view.layers),
        tuple(keeps),
    )


def _sites(method: str, plan: Planner, architecture: str) -> list[tuple[str, list[Answers]]]:
    """Where a method may act, with every combination of answers to its knobs there."""
    prefix = f"{architecture}/{method}/"
    base: Answers = {ARCHITECTURE: architecture}
    options: dict[str, list[Answers]] = {}
    for name, knob in _asked(plan, base, prefix).items():
        options.setdefault(name.rpartition("/")[0], []).extend({name: value} for value in values(knob))
    options = {path: found for path, found in options.items() if found}
    rounds = max((len(found) for found in options.values()), default=0)
    complete: dict[str, list[Answers]] = {path: [] for path in options}
    for index in range(rounds):
        chosen = {path: found[min(index, len(found) - 1)] for path, found in options.items()}
        given = base | {name: value for answers in chosen.values() for name, value in answers.items()}
        further: dict[str, dict[str, Knob]] = {}
        for name, knob in _asked(plan, given, prefix).items():
            if name not in given:
                further.setdefault(name.rpartition("/")[0], {})[name] = knob
        for path, answers in chosen.items():
            if index < len(options[path]):
                complete[path] += _combined(answers, further.get(path, {}))
    return [(path.removeprefix(prefix), found) for path, found in complete.items()]


def _combined(answers: Answers, further: Mapping[str, Knob]) -> list[Answers]:
    """The answers with every combination of those to further knobs, which depend on no other."""
    choices = [(neutral(knob), *values(knob)) for knob in further.values()]
    return [answers | dict(zip(further, combination, strict=True)) for combination in product(*choices)]


def values(knob: Knob, most: int = 4) -> tuple[Scalar, ...]:
    """The values of a knob beside the neutral one; of a range some that are spread evenly.

    >>> from autocompress.space import Float, Int
    >>> values(Choice((0, 0.25, 0.5))), values(Int(0, 9)), values(Float(0.0, 1.0, step=0.5))
    ((0.25, 0.5), (2, 4, 7, 9), (0.5, 1.0))
    """
    if isinstance(knob, Choice):
        return knob.options[1:]
    if knob.step is None:
        return tuple(knob.low + (knob.high - knob.low) * part / most for part in range(1, most + 1))
    steps = int((knob.high - knob.low) / knob.step + 1e-9)
    counts = sorted({max(1, round(steps * part / most)) for part in range(1, most + 1)}) if steps else []
    return tuple(knob.low + knob.step * count for count in counts)


def _asked(plan: Planner, answers: Answers, prefix: str) -> dict[str, Knob]:
    """The knobs below a prefix that are asked under some answers, with the others at their neutral one."""
    found: dict[str, Knob] = {}

    def suggest(name: str, knob: Knob) -> Scalar:
        if name.startswith(prefix):
            found[name] = knob
        return answers.get(name, neutral(knob))

    plan(suggest)
    return found


def _settings(method: str, plan: Planner, architecture: str, option: Mapping[str, Scalar]) -> Settings | None:
    """What a method does under an option; None if the plan does not take it."""
    given = {ARCHITECTURE: architecture, **option}
    steps = plan(lambda name, knob: given.get(name, neutral(knob))).steps
    return next((step.settings for step in steps if step.method == method), None)


def _effect(view: LayerView, changed_view: LayerView) -> Effect:
    """What the layers of a view become."""
    left = {layer.name: layer for layer in changed_view.layers}
    changed = [
        (index, before, left.get(before.name))
        for index, before in enumerate(view.layers)
        if left.get(before.name) != before
    ]
    return Effect(
        layers=tuple(index for index, _, _ in changed),
        macs=tuple(_share(before.macs, after.macs if after else 0) for _, before, after in changed),
        weights=tuple(_share(before.parameters, after.parameters if after else 0) for _, before, after in changed),
        parts=tuple(after.parts if after else 1 for _, _, after in changed),
        density=tuple(after.density if after else 1.0 for _, _, after in changed),
        bits=tuple(after.bits if after else 32.0 for _, _, after in changed),
        precision=tuple(_precision(before, after) for _, before, after in changed),
    )


def _precision(before: Layer, after: Layer | None) -> str:
    return after.precision if after and after.precision != before.precision else ""


def _share(before: int, after: int) -> float:
    return after / before if before else float(after > 0)
