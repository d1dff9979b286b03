"""HTML page of the routes, written from the OpenAPI schema; it loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .5rem 1rem; border: 1px solid; border-radius: 4px; }
h2 code { font-size: 1.1rem; }
"""


def api_page(description: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    parts = [
        _operation(path, method, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = json.dumps(description.get("components", {}).get("schemas", {}), indent=1)
    title = escape(description["info"]["title"])
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>'
        + "".join(parts)
        + f"<h2>Schemas</h2><pre>{escape(schemas)}</pre></html>"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    shown = f"<details><summary>Body</summary><pre>{escape(json.dumps(body, indent=1))}</pre></details>" if body else ""
    said = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(operation.get("description", "")))
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{said}</p>{shown}"
