"""What the files of deploy/ name is there: no daemon runs them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from adagrpo.serving.middleware import ROUTES

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = {"../secrets/tokens", "../secrets/user-key", "../secrets/prometheus"}  # made by the user


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def test_the_compose_file_mounts_what_there_is_where_it_is_read() -> None:
    services: dict[str, Any] = yaml.safe_load(read("compose.yaml"))["services"]
    image, mounted = read("Dockerfile"), {}
    for name, service in services.items():
        for volume in service["volumes"]:
            source, target = re.fullmatch(r"(\$\{.*?\}|[^:]+):([^:]+)(?::ro)?", volume).groups()  # type: ignore[union-attr]
            mounted[target] = source
            assert not source.startswith(".") or source in SECRETS or (DEPLOY / source).exists(), (name, source)
    for place in ("/run-dir", "/secrets/tokens", "/secrets/user-key"):
        assert place in mounted and f'"{place}"' in image  # of the entry point
    assert "/log" in mounted and "VOLUME /log" in image and "HEALTHCHECK" in image
    asked = yaml.safe_load(read("prometheus.yml"))["scrape_configs"][0]
    assert asked["authorization"]["credentials_file"] in mounted and "/metrics" in ROUTES
    (target,) = asked["static_configs"][0]["targets"]
    assert target == "adagrpo:8000" and "adagrpo" in services and "EXPOSE 8000" in image


def test_nginx_of_the_compose_file_asks_the_service_alone() -> None:
    text, script = read("nginx.conf"), yaml.safe_load(read("compose.yaml"))["services"]["nginx"]["command"][2]
    for old, new in re.findall(r"s/(.*?)/(.*?)/", script):
        assert old in text
        text = text.replace(old, new)
    (gone,) = re.findall(r'"/(.*?)/d"', script)
    text = "\n".join(line for line in text.splitlines() if gone not in line)
    assert re.findall(r"^    server (\S+)", text, re.MULTILINE) == ["adagrpo:8000"]
    assert "server_name $$NAME;" in text
