"""The report's page: one HTML file that loads nothing else."""

from __future__ import annotations

from html import escape
from pathlib import Path

from autocompress.errors import InvalidInput
from autocompress.report.facts import RunFacts
from autocompress.report.sections import SECTIONS
from autocompress.run_directory import RunDirectory
from autocompress.serialization import write_atomically

_HERE = Path(__file__).parent

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{sections}
</main>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def write_report(directory: RunDirectory, output: Path) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        directory: The run, finished or not.
        output: The file to write; one that is there is replaced.

    Raises:
        InvalidInput: If it can't be written.
    """
    from plotly.offline import get_plotlyjs

    facts = RunFacts.read(directory, output.parent)
    sections = sorted((SECTIONS[name]() for name in SECTIONS), key=lambda section: section.order)
    page = _PAGE.format(
        title=escape(f"{facts.config.task}: compressed models"),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        sections="\n".join(filter(None, (section(facts) for section in sections))),
        plotly=get_plotlyjs(),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page)
    except OSError as error:
        raise InvalidInput(f"report {output}: can't be written: {error.strerror}; give another --output") from error
    return output


def front_html(directory: RunDirectory) -> str:
    """The front of a run as a table, for notebooks."""
    facts = RunFacts.read(directory, Path())
    counts = ", ".join(f"{facts.count(status)} {status}" for status in ("complete", "screened", "failed"))
    heading = f"<p><b>{escape(facts.config.task)}</b> · {facts.status} · {counts}</p>"
    return heading + SECTIONS["front_table"]().html(facts)
