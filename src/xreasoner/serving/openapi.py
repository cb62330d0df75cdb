"""The service's OpenAPI document, made of the same table of fields by which requests are checked."""

from __future__ import annotations

from typing import Any

from xreasoner.serving.openai_schema import CHAT_FIELDS, DECISION_FIELDS, Field, Fields

_PROBES: dict[str, tuple[Any, ...]] = {
    "boolean": (True, False),
    "integer": (-1, 0, 1, 2),
    "number": (0.5, 1.5),
    "string": ("", "a", "auto", "none", "default", "medium", "</think>"),
    "array": ([], ["a"], ["text"]),
    "object": ({}, {"type": "text"}, {"include": True}, {"include_usage": True}),
}
"""Values of each JSON type; a field's types are those of which it accepts any."""

_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_IMAGE_PART = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "properties": {
                "url": {"type": "string", "description": "a data: URL, or an address that the service may fetch"},
                "detail": {"enum": ["auto", "low", "high"]},
            },
            "required": ["url"],
        },
    },
    "required": ["type", "image_url"],
}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {
                "oneOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"oneOf": [_TEXT_PART, _IMAGE_PART]}},
                    {"type": "null"},
                ]
            },
        },
        "required": ["role"],
    },
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}


def openapi_document(model: str, version: str) -> dict[str, Any]:
    """The document of `GET /openapi.json`.

    Args:
        model: the served model's name, the example of `/v1/models/{name}`.
        version: the package's.
    """
    ok = {"200": _json("The reply.", {"type": "object"})}
    streamed = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    chat = {"200": {"description": "The reply, or its events with `stream`.", "content": streamed}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
    return {
        "openapi": "3.1.0",
        "info": {"title": "X-Reasoner", "version": version},
        "paths": {
            "/v1/chat/completions": {"post": _post("Chat with the model.", CHAT_FIELDS, ["messages"], chat)},
            "/v1/decisions": {
                "post": _post("Option probabilities.", DECISION_FIELDS, ["messages", "options"], ok),
            },
            "/v1/models": {"get": {"summary": "The served model.", "responses": {**ok, **_errors()}}},
            "/v1/models/{name}": {
                "get": {"summary": "One model.", "parameters": [name], "responses": {**ok, **_errors()}},
            },
            "/health": {"get": {"summary": "Whether the model is loaded.", "responses": {**ok, **_errors()}}},
        },
    }


def _post(summary: str, fields: Fields, required: list[str], replies: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _field_schema(field) for name, field in fields.items()}
    body = {"type": "object", "properties": {**properties, "messages": _MESSAGES}, "required": required}
    content = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"summary": summary, "requestBody": content, "responses": {**replies, **_errors()}}


def _field_schema(field: Field) -> dict[str, Any]:
    types = [kind for kind, probes in _PROBES.items() if any(field.accepts(probe) for probe in probes)]
    note = f" ({field.note})" if field.note else ""
    return {"type": [*types, "null"], "description": f"{field.expected}{note}"}


def _errors() -> dict[str, Any]:
    return {code: _json("What was found, and what was expected.", _ERROR) for code in ("4XX", "5XX")}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
