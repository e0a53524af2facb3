"""The API's description as a page for people, without scripts."""

from __future__ import annotations

import html
import json

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from longcat.server.api.playground.routes import PAGE_HEADERS
from longcat.support.json_types import JsonObject

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    return HTMLResponse(api_page(request.app.openapi()), headers=PAGE_HEADERS)


def api_page(description: JsonObject) -> str:
    """An OpenAPI description as HTML: each endpoint with the fields of its body."""
    schemas = description.get("components", {}).get("schemas", {})
    parts = [f"<h1>{_e(description['info']['title'])} {_e(description['info']['version'])}</h1>"]
    parts.append(f'<p>{_e(description["info"]["description"])} As data: <a href="/openapi.json">openapi.json</a>.</p>')
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {_e(path)}</code></h2><p>{_e(operation.get('summary', ''))}</p>")
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name in schemas:
                parts.append(_fields(schemas[name]))
    return _PAGE.replace("BODY", "\n".join(parts))


def _fields(schema: JsonObject) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{_e(name)}</code>{' *' if name in required else ''}</td><td>{_e(_type(field))}</td>"
        f"<td>{_e(json.dumps(field['default'])) if 'default' in field else ''}</td>"
        f"<td>{_e(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    head = "<tr><th>field (* required)</th><th>type</th><th>default</th><th>meaning</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _type(field: JsonObject) -> str:
    """Describes a JSON schema in a few words."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    name = str(field.get("type", "any"))
    if name == "array":
        name = f"list of {_type(field.get('items', {}))}"
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return " ".join([name, *(f"{sign} {field[key]}" for key, sign in limits.items() if key in field)])


def _e(text: object) -> str:
    return html.escape(str(text))


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>longcat API</title><link rel="icon" href="/page/icon.svg"><link rel="stylesheet" href="/page/docs.css">
<main>BODY</main></html>
"""
