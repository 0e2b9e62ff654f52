"""From a search space to plans: which knobs there are, and what their answers mean."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from autocompress.errors import InvalidInput, UnknownName
from autocompress.graph.view import LayerView
from autocompress.methods import METHODS, CompressionMethod
from autocompress.plan import ARCHITECTURE, ORIGINAL, Plan, Scalar, Stage, Step
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, SearchSpace, Suggest, policy_suggest, record_answers, scaled_name

Planner = Callable[[Suggest], Plan]


def architectures(space: SearchSpace, students: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The architectures that a space and a task offer; the original first.

    Args:
        space: Says which copies of the original there are, and how many variants of each student.
        students: Name of each student of the task to its architectures.
    """
    widths, depths = (1.0, *space.widths), (1.0, *space.depths)
    scaled = [scaled_name(width, depth) for depth in depths for width in widths if (width, depth) != (1, 1)]
    wanted = {policy.get(ARCHITECTURE) for policy in space.policies}
    offered = [
        variant
        for variants in (students.values() if space.students else ())
        for number, variant in enumerate(variants)
        if number < space.variants or variant in wanted
    ]
    return (ORIGINAL, *scaled, *offered)


def planner(space: SearchSpace, models: Mapping[str, LayerView], profile: HardwareProfile) -> Planner:
    """A function that asks every knob of a space and gives the plan.

    Knobs are named `architecture` and `ARCHITECTURE/METHOD/LAYER/PARAMETER`; which of the latter are asked depends on
    the architecture that was chosen.

    Args:
        space: Its recovery must be resolved to numbers.
        models: Architecture name to its layers; those missing can't be built and are left out.
        profile: The machine; choices that are not faster there are not offered.

    Raises:
        UnknownName: If the space names a method that is not registered, or layers that no architecture has.
    """
    _check_patterns(space, models)
    methods = sorted((METHODS[name]() for name in space.methods), key=lambda method: method.turn)
    names = tuple(models)

    def plan(suggest: Suggest) -> Plan:
        chosen = suggest(ARCHITECTURE, Choice(names)) if len(names) > 1 else names[0]
        architecture = str(chosen)
        whole, below = models[architecture], _below(architecture, suggest)
        full = {layer.name: layer for layer in whole.layers}
        left = whole
        steps = []
        for method in methods:
            # what may be chosen must not depend on sizes that earlier answers left, since a knob has one set of choices
            offered = replace(left, layers=tuple(full[layer.name] for layer in left.layers))
            wanted = method.propose(offered, below, space.methods[method.name], profile)
            settings = method.fitting(left, wanted, profile) if wanted else wanted
            if settings:
                steps.append(Step(method.name, settings))
                left = method.leaves(left, settings, profile)
        is_student = architecture != ORIGINAL
        share = whole.macs / max(1, models[ORIGINAL].macs) if is_student else None
        recovery = space.recovery.resolve(share)
        draft = Plan(architecture, tuple(steps), recovery if _removes(steps) else recovery.without_penalty())
        return draft if is_student or _needs_recovery(steps) else draft.without_recovery()

    return plan


def check_space(space: SearchSpace, offered: tuple[str, ...]) -> None:
    """Refuse a space that can't be searched or holds what would never be tried.

    Args:
        space: As the user gave it.
        offered: The architectures, the original among them.

    Raises:
        UnknownName: If it names a method, a parameter or an architecture that is not known.
        InvalidInput: If a value is none of a parameter's, or nothing is left to search.
    """
    methods = {name: METHODS[name]() for name in space.methods}
    for name, method in methods.items():
        for parameter, values in space.methods[name].parameters.items():
            _check_values(method, parameter, values, space)
    for policy in space.policies:
        for key, value in policy.items():
            name, _, parameter = key.partition("/")
            if key != ARCHITECTURE:
                _check_values(methods[name], parameter, (value,), space)
                _check_offered(name, parameter, value, space)
            elif value not in offered:
                raise UnknownName(f"architecture in a policy of the search space {space.name!r}", str(value), offered)
    if not space.methods and len(offered) < 2:
        raise InvalidInput(
            f"search space {space.name!r}: no methods, widths or students, so there is nothing to search; name some"
        )


def _check_values(method: CompressionMethod, parameter: str, values: tuple[Scalar, ...], space: SearchSpace) -> None:
    if parameter not in method.parameters:
        raise UnknownName(f"parameter of {method.name!r} in the search space", parameter, method.parameters)
    for value in values:
        if not method.takes(parameter, value):
            raise InvalidInput(
                f"search space {space.name!r}: {method.name}/{parameter}: {value!r}; expected "
                f"{method.parameters[parameter]}"
            )


def _check_offered(method: str, parameter: str, value: Scalar, space: SearchSpace) -> None:
    """Refuse a policy with a value that the space names others for, which would silently be taken instead."""
    offered = space.methods[method].parameters.get(parameter, (value,))
    if value not in offered:
        raise InvalidInput(
            f"search space {space.name!r}: a policy sets {method}/{parameter} to {value!r}, but the space offers "
            f"{', '.join(map(repr, offered))}; add it there, or change the policy"
        )


def _check_patterns(space: SearchSpace, models: Mapping[str, LayerView]) -> None:
    """Refuse patterns of layers that match nothing in any architecture."""
    names = {layer.name for view in models.values() for layer in view.layers}
    names |= {group.name for view in models.values() for group in view.channel_groups}
    names |= {block.name for view in models.values() for block in view.blocks}
    for method, part in space.methods.items():
        for pattern in (*part.layers, *part.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UnknownName(f"layer in the search space for {method!r}", pattern, names)


def policy_plans(
    space: SearchSpace, plan: Planner, students: Sequence[str] = ()
) -> tuple[tuple[dict[str, Scalar], Plan], ...]:
    """The answers and plans of the space's uniform policies, each plan once and none that changes nothing.

    The first policy, if there is one, is also tried on some of the task's own students, after the others.

    Args:
        space: Where the policies are.
        plan: Makes plans of answers.
        students: Architectures of the task's own students to try, one of each student for example.
    """
    found: dict[str, tuple[dict[str, Scalar], Plan]] = {}
    first = space.policies[0] if space.policies else {}
    own = tuple({**first, ARCHITECTURE: name} for name in students) if space.students and first else ()
    for policy in (*space.policies, *own):
        answers: dict[str, Scalar] = {}
        candidate = plan(record_answers(policy_suggest(policy), answers))
        if not _unmet(policy, candidate):
            found.setdefault(candidate.digest, (answers, candidate))
    return tuple(found.values())


def choices_left_out(space: SearchSpace, model: LayerView, profile: HardwareProfile) -> dict[str, str]:
    """What a space names and some layers of a model are not offered on a machine, each with the reason."""
    return {
        f"{name} {choice}": reason
        for name in space.methods
        for choice, reason in METHODS[name]().withheld(model, space.methods[name], profile).items()
    }


def policies_left_out(space: SearchSpace, plan: Planner, offered: Container[str]) -> dict[str, str]:
    """The policies of a space that mean nothing for this model and machine, each with the part that no layer takes.

    Args:
        space: Where the policies are.
        plan: Makes plans of answers.
        offered: The architectures; policies of others are left out for another reason.
    """
    missing = {}
    for policy in space.policies:
        if policy.get(ARCHITECTURE, ORIGINAL) not in offered:
            continue
        unmet = _unmet(policy, plan(policy_suggest(policy)))
        if unmet:
            missing[", ".join(f"{key}: {value}" for key, value in policy.items())] = unmet
    return missing


def _unmet(policy: Mapping[str, Scalar], candidate: Plan) -> str:
    """The first part of a policy that nothing in its plan comes from; empty if there is none.

    Numbers are met by the nearest that a layer offers, words and truth values by themselves alone.
    """
    for key, value in policy.items():
        if key == ARCHITECTURE:
            met = candidate.architecture == value
        else:
            method, _, parameter = key.partition("/")
            given = [setting for step in candidate.steps if step.method == method for setting in step.settings.values()]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            met = any(is_number or setting.get(parameter) == value for setting in given)
        if not met:
            return f"{key}: {value}"
    return "" if candidate.steps or candidate.architecture != ORIGINAL else "every part is neutral"


def _below(architecture: str, suggest: Suggest) -> Suggest:
    return lambda name, knob: suggest(f"{architecture}/{name}", knob)


def _removes(steps: list[Step]) -> bool:
    """True if channels, blocks or single weights go, for which a penalty prepares."""
    return any(METHODS[step.method].stage in (Stage.STRUCTURE, Stage.WEIGHTS) for step in steps)


def _needs_recovery(steps: list[Step]) -> bool:
    return any(METHODS[step.method]().needs_recovery(step.settings) for step in steps)


def resolve_epochs(space: SearchSpace, epochs: int) -> SearchSpace:
    """The space with "auto" replaced: `epochs` for compressed originals, twice as many for students."""
    recovery = space.recovery
    own = epochs if recovery.epochs == "auto" else recovery.epochs
    students = 2 * epochs if recovery.student_epochs == "auto" else recovery.student_epochs
    return replace(space, recovery=replace(recovery, epochs=own, student_epochs=students))
