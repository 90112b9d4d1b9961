"""A report as one HTML file that needs no other: every text is escaped, every picture is inside."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluation.report_rows import Result, Row, Setting, Spread, Table, differing, direction, flat

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; margin: 2rem auto; padding: 0 1rem;
       max-width: 76rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
code, pre { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th { font-weight: 600; } .text { text-align: left; } .left { border-left: 1px solid #bbb; }
.best { font-weight: 700; background: #e3f1e3; }
.warning { background: #fdf0d0; border-left: 4px solid #d99a00; padding: .4rem .7rem; }
figure { margin: 1.2rem 0; } figcaption { color: #555; } img { max-width: 100%; }
details { margin: .4rem 0; } summary { cursor: pointer; color: #444; }
"""
# Nothing is loaded from anywhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Settings of the network and the data say little that the configs compared do not share.
_FOLDED = ("model.", "diffusion.", "image.", "companions", "snapshots", "told.")
_DIGEST = re.compile(r"\b[0-9a-f]{32,}\b")
_PLACES = {1: "higher is better", -1: "lower is better", 0: ""}


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The file: (name, HTML) of each section below a table of contents."""
    links = "".join(
        f'<li><a href="#s{k}">{escape(name)}</a></li>' for k, (name, _) in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{k}"><h2>{escape(name)}</h2>{content}</section>'
        for k, (name, content) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><ul>{links}</ul>{body}</body></html>\n"
    )


def metric(
    file: str, found: Sequence[Table], pictures: Sequence[Mapping[str, tuple[str, bytes]]]
) -> str:
    """All tables of a file, each with its plots (caption, PNG)."""
    parts = []
    if len(found) > 1:
        what = " and ".join(differing(found))
        parts.append(
            f'<p class="warning">Rows of {escape(file)}.jsonl differ in {escape(what)}: their '
            "numbers do not compare, so they are in separate tables.</p>"
        )
    for number, (table, plots) in enumerate(zip(found, pictures, strict=True), start=1):
        heading = f"<h3>Table {number}</h3>" if len(found) > 1 else ""
        parts += [heading, _about(table), _summary(table)]
        parts += [figure(data, caption) for caption, data in plots.values()]
        parts += [_everything(table), _identities(table), provenance(_rows(table))]
    return "".join(parts)


def others(rows: Sequence[Row]) -> str:
    """Rows of no known form, as they are."""
    contents = [flat(row.content) for row in rows]
    names = list(dict.fromkeys(name for content in contents for name in content))
    head = _line("th", ["file", "line", *names])
    lines = [
        _line("td", [row.file, row.line, *(content.get(name, "") for name in names)])
        for row, content in zip(rows, contents, strict=True)
    ]
    return _wide(f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>")


def figure(data: bytes, caption: str) -> str:
    """A PNG with a line below."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def paragraph(text: str) -> str:
    """A line of text."""
    return f"<p>{escape(text)}</p>"


def setting(items: Setting) -> str:
    """A setting in words."""
    return ", ".join(f"{label(name)} {_text(value)}" for name, value in items)


def label(name: str) -> str:
    """Of a setting or a value; a dotted name stands as it is in the config."""
    return name if "." in name else name.replace("_per_image", "").replace("_", " ")


def provenance(rows: Sequence[Row]) -> str:
    """What computed rows, folded away: (lines of the file, commit, versions, device) once each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        what = row.content.get("provenance")
        if not isinstance(what, Mapping):
            continue
        what = {k: v for k, v in what.items() if k != "time"}
        groups.setdefault(json.dumps(what, indent=2), []).append(row)
    parts = []
    for text, of in groups.items():
        times = sorted(str(row.content["provenance"].get("time")) for row in of)
        ends = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
        lines = ", ".join(str(row.line) for row in sorted(of, key=lambda row: row.line))
        parts.append(f"<p>Rows on lines {lines}; {escape(ends)}</p><pre>{escape(text)}</pre>")
    seconds = {row.line: row.content["seconds"] for row in rows if row.content.get("seconds")}
    if seconds:
        text = "\n".join(f"line {k}: {json.dumps(v)}" for k, v in sorted(seconds.items()))
        parts.append(f"<p>Seconds</p><pre>{escape(text)}</pre>")
    return _details("Provenance: commit, versions, device, time", "".join(parts))


def _about(table: Table) -> str:
    row = table.example
    parts = [f"<p><code>{escape(str(row.content.get('metric')))}</code></p>"]
    said = [] if row.count is None else [f"{_number(row.count)} images or examples a row"]
    if name := row.content.get("reference_name"):
        said.append(f"reference {name}")
    what = row.content.get("extractor")
    if isinstance(what, Mapping) and "name" in what:
        said.append(f"extractor {what['name']}")
    if said:
        parts.append(paragraph("; ".join(map(str, said)) + "."))
    common = table.common
    short = tuple(item for item in common if not item[0].startswith(_FOLDED))
    folded = tuple(item for item in common if item[0].startswith(_FOLDED))
    if short:
        parts.append(paragraph(f"The same in all rows: {setting(short)}."))
    if folded:
        parts.append(_details("More that is the same in all rows", paragraph(setting(folded))))
    if table.repeated:
        parts.append(
            '<p class="warning">Rows that repeat a setting and its seed: '
            f"{table.repeated}; the last of a seed counts.</p>"
        )
    return "".join(parts)


def _summary(table: Table) -> str:
    """A line a setting; with seeds the least, mean and standard deviation of each value."""
    seeds = max(len(result.rows) for result in table.results) > 1
    best = {value: table.best(value) for value in table.shown}
    return _table(table, table.shown, seeds, best) + (
        paragraph("Marked: the best mean of each value whose better direction is known.")
        if any(best.values())
        else ""
    )


def _everything(table: Table) -> str:
    """All values as means, where the summary has only some."""
    if table.shown == table.values:
        return ""
    return _details("All values (means over seeds)", _table(table, table.values, False, {}))


def _table(table: Table, values: Sequence[str], seeds: bool, best: Mapping[str, set[int]]) -> str:
    span = ' colspan="3"' if seeds else ""
    rows = ' rowspan="2"' if seeds else ""
    head = "".join(f'<th class="text"{rows}>{escape(label(name))}</th>' for name in table.varied)
    head += f"<th{rows}>seeds</th>"
    for value in values:
        hint = _PLACES[direction(table.file, value)]
        head += f'<th class="left"{span} title="{hint}">{escape(label(value))}</th>'
    lines = [f"<tr>{head}</tr>"]
    if seeds:
        lines.append(
            f"<tr>{'<th class=left>least</th><th>mean</th><th>std</th>' * len(values)}</tr>"
        )
    body = [
        f"<tr>{_setting_cells(table, result)}"
        + "".join(_cells(result.of(value), seeds, k in best.get(value, ())) for value in values)
        + "</tr>"
        for k, result in enumerate(table.results)
    ]
    return _wide(f"<table><thead>{''.join(lines)}</thead><tbody>{''.join(body)}</tbody></table>")


def _setting_cells(table: Table, result: Result) -> str:
    given = dict(result.setting)
    cells = [_text(given[name]) if name in given else "" for name in table.varied]
    return "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells) + (
        f"<td>{len(result.rows)}</td>"
    )


def _cells(numbers: Sequence[float], seeds: bool, best: bool) -> str:
    spread = Spread.of(numbers)
    mark = " best" if best else ""
    if not seeds:
        return f'<td class="left{mark}">{_number(spread.mean) if spread else ""}</td>'
    if spread is None:
        return '<td class="left"></td><td></td><td></td>'
    std = "" if spread.std is None else f"{spread.std:.2g}"
    return (
        f'<td class="left">{_number(spread.least)}</td><td class="{mark.strip()}">'
        f"{_number(spread.mean)}</td><td>{std}</td>"
    )


def _identities(table: Table) -> str:
    content = table.example.content
    what = {k: content[k] for k in ("reference", "extractor") if content.get(k)}
    if not what:
        return ""
    text = f"<pre>{escape(json.dumps(what, indent=2))}</pre>"
    return _details("Identity of the reference and of the extractor", text)


def _rows(table: Table) -> list[Row]:
    return [row for result in table.results for row in result.rows]


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def _wide(content: str) -> str:
    return f'<div class="wide">{content}</div>'


def _line(tag: str, cells: Sequence[Any]) -> str:
    return (
        "<tr>" + "".join(f'<{tag} class="text">{escape(_text(c))}</{tag}>' for c in cells) + "</tr>"
    )


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        # Guidances add up.
        value = " + ".join(value) or "none"
    if value is None or value == "":
        return "none" if value is None else ""
    text = value if isinstance(value, str) else json.dumps(value)
    return _DIGEST.sub(lambda found: found[0][:12] + "…", text)


def _number(value: Any) -> str:
    """Five digits; whole numbers in full."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e6):
        return f"{value:.5g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
