"""The OpenAPI description of the endpoint as a page that needs nothing from other servers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
h2 { margin: 2.2rem 0 .3rem; font-size: 1.1rem }
code, pre { font-family: ui-monospace, monospace; font-size: 13px }
pre { background: #f3f5f7; padding: .7rem 1rem; border-radius: 6px; overflow-x: auto }
.method { background: #0b6e4f; color: #fff; border-radius: 4px; padding: .1rem .5rem; font-size: 13px }
.get { background: #2457a6 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 }
td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e1e5ea }
th { font-weight: 600 }
"""
_EXAMPLE = """curl -F color=@color.png -F depth=@depth.png -F camera=525,525,319.5,239.5 ADDRESS/api/segment
curl -F color=@color.png -F depth=@depth.png -F output=zip -o result.zip ADDRESS/api/segment"""
_SCRIPT = (
    "for (const one of document.querySelectorAll('pre')) "
    "one.textContent = one.textContent.replaceAll('ADDRESS', location.origin)"
)


def openapi_page(description: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        description: OpenAPI 3.1, as FastAPI writes it.
    """
    parts = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation, description))
    info = description["info"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(info["title"])}: HTTP endpoint'
        f"</title><style>{_STYLE}</style></head><body><h1>{_text(info['title'])} {_text(info['version'])}: HTTP "
        f'endpoint</h1><p>{_text(info.get("description", ""))} The same for programs: <a href="openapi.json">OpenAPI'
        f'</a>. For people: <a href="/">the page</a>.</p><pre>{_text(_EXAMPLE)}</pre>{"".join(parts)}'
        f"<script>{_SCRIPT}</script></body></html>"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    rows = [
        (one["name"], _type(one["schema"]), one.get("required", False), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(content["schema"], description)
        for name, one in schema.get("properties", {}).items():
            rows.append((name, _type(one), name in schema.get("required", ()), one.get("description", "")))
    answers = []
    for status, response in operation.get("responses", {}).items():
        if status == "422" and "kind" not in str(response) and not rows:
            continue
        kinds = ", ".join(response.get("content", {}))
        fields = ""
        for content in response.get("content", {}).values():
            if content:
                fields = fields or _fields(content.get("schema", {}), description)
        answers.append(
            f"<tr><td><code>{_text(status)}</code></td><td>{_text(response.get('description', ''))}</td>"
            f"<td>{_text(kinds)}{f'<br>{fields}' if fields else ''}</td></tr>"
        )
    inputs = "".join(
        f"<tr><td><code>{_text(name)}</code></td><td>{_text(kind)}{'' if needed else ', optional'}</td>"
        f"<td>{_text(text)}</td></tr>"
        for name, kind, needed, text in rows
    )
    table = f"<table><tr><th>input</th><th>type</th><th></th></tr>{inputs}</table>" if rows else ""
    return (
        f'<h2><span class="method {_text(method)}">{_text(method.upper())}</span> <code>{_text(path)}</code></h2>'
        f"<p>{_text(operation.get('summary', ''))}</p>{table}"
        f"<table><tr><th>status</th><th></th><th>body</th></tr>{''.join(answers)}</table>"
    )


def _fields(schema: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    resolved = _resolved(schema.get("items", schema), description)
    names = [f"<code>{_text(name)}</code>" for name in resolved.get("properties", {})]
    return ("a list of: " if "items" in schema else "") + ", ".join(names) if names else ""


def _resolved(schema: Mapping[str, Any], description: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = description["components"]["schemas"][str(reference).rpartition("/")[2]]
    return found


def _type(schema: Mapping[str, Any]) -> str:
    choices = schema.get("anyOf", [schema])
    first: Mapping[str, Any] = next((one for one in choices if one.get("type") != "null"), {})
    if "enum" in first:
        return " | ".join(map(str, first["enum"]))
    if first.get("format") == "binary" or "contentMediaType" in first:
        return "file"
    return str(first.get("type", ""))


def _text(value: Any) -> str:
    return html.escape(str(value))
