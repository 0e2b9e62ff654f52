"""What the search was asked to do, and with which versions."""

from __future__ import annotations

from html import escape

from autocompress.duration import format_duration
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section
from autocompress.run_directory import RunConfig
from autocompress.serialization import to_json


@SECTIONS.register
class Configuration(Section):
    """The configuration as resolved, all of it on demand."""

    name, title, order = "configuration", "Configuration", 60

    def html(self, facts: RunFacts) -> str:
        config = facts.config
        lines = {
            "task": f"{config.task} ({config.task_reference or 'given as an object'})",
            "objectives": ", ".join(f"{objective.direction} {objective.name}" for objective in config.objectives),
            "constraints": ", ".join(map(str, config.constraints)) or "none",
            "search space": config.space.name,
            "hardware": ", ".join(profile.name for profile in config.profiles),
            "score on the device": "yes" if config.score_on_device else "no",
            "strategy": config.strategy,
            "budget": format_duration(config.budget_s) if config.budget_s else "no limit of time",
            "trials": f"at most {config.trials}" if config.trials else "no limit",
            "executor": _executor(config),
            "workers": str(config.workers),
            "seed": str(config.seed),
            "study": f"{config.study} in {config.storage}" if config.storage else "study.journal",
            "started": config.created or "unknown",
            "machine": config.machine or "unknown",
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(config.versions.items())),
        }
        rows = "".join(f'<tr><th>{key}</th><td class="why">{escape(value)}</td></tr>\n' for key, value in lines.items())
        return (
            f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>\n'
            f"<details><summary>everything, as JSON</summary><pre>{escape(to_json(config, indent=2))}</pre></details>"
        )


def _executor(config: RunConfig) -> str:
    """Where trials ran, and what training took of a cluster."""
    cluster, found = config.cluster, [config.executor]
    if cluster.address:
        found.append(f"at {cluster.address}")
    if cluster.trainers_per_trial > 1:
        found.append(f"{cluster.trainers_per_trial} trainers per trial")
    if cluster.gpus_per_trial:
        found.append(f"GPUs per {'trainer' if cluster.trainers_per_trial > 1 else 'trial'}: {cluster.gpus_per_trial:g}")
    return ", ".join(found)
