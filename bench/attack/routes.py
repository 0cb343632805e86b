"""Routes to a server: direct, or through a proxy with the files of deploy/ or ingress-nginx's default settings."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mpesa_gateway.standalone.process import free_port, launch, stop, tail

DEPLOY = Path(__file__).parents[2] / "deploy"
ROUTES = ("direct", "nginx", "caddy", "ingress")
_PATIENCE = 15.0


def is_installed(route: str) -> bool:
    """Return True if the route's proxy is installed."""
    return route == "direct" or shutil.which("caddy" if route == "caddy" else "nginx", path=_PATH) is not None


def proxy_version(proxy: str) -> str:
    """Return the name and version of an installed proxy."""
    command = {"nginx": ["nginx", "-v"], "caddy": ["caddy", "version"]}[proxy]
    done = subprocess.run(command, env={"PATH": _PATH}, check=False, capture_output=True, text=True)
    words = (done.stdout + done.stderr).split()
    return f"{proxy} {words[-1].rpartition('/')[2] if proxy == 'nginx' else words[0]}"


@contextmanager
def through(route: str, upstream: int, folder: Path) -> Generator[int]:
    """Run the route's proxy in front of the server at this port. Yields the port to attack."""
    if route == "direct":
        yield upstream
        return
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = {"nginx": _nginx, "caddy": _caddy, "ingress": _ingress}[route](folder, port, upstream)
    with (folder / "proxy.log").open("wb") as log:
        process = launch(
            command, output=log, death_signal=signal.SIGKILL, env={"HOME": str(folder), "PATH": _PATH}, cwd=folder
        )
    try:
        wait_until_listening(port, process, folder / "proxy.log")
        yield port
    finally:
        stop(process, (signal.SIGTERM,), 10)


def wait_until_listening(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the port accepts connections. Raises RuntimeError if the process ends or takes too long."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}:\n{tail(log)}")


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_FRAME = """daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
worker_rlimit_nofile 20000;
http {{
  access_log off;
  client_body_temp_path {folder}/client_body;
  proxy_temp_path {folder}/proxy;
  include {folder}/site.conf;
}}
"""

# ingress-nginx's output for one Ingress with default settings: kept connections to the pods, HTTP/1.1, and the client's
# Upgrade passed on.
_INGRESS = """
map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
upstream upstream_balancer {{
  server 127.0.0.1:{upstream};
  keepalive 320;
  keepalive_timeout 60s;
  keepalive_requests 10000;
}}
server {{
  listen 127.0.0.1:{port};
  client_max_body_size 64k;
  client_header_timeout 60s;
  client_body_timeout 60s;
  client_header_buffer_size 1k;
  large_client_header_buffers 4 8k;
  underscores_in_headers off;
  ignore_invalid_headers on;
  keepalive_timeout 75s;
  keepalive_requests 1000;
  proxy_connect_timeout 5s;
  proxy_send_timeout 60s;
  proxy_read_timeout 60s;
  proxy_buffering off;
  proxy_buffer_size 4k;
  proxy_request_buffering on;
  proxy_next_upstream error timeout;
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  proxy_set_header X-Request-ID $request_id;
  proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Host $http_host;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header Proxy "";
  # The callbacks' Ingress, with its whitelist-source-range.
  location ~ ^/v1/(cb|webhooks/mpesa)(/|$) {{ allow 196.201.214.200; deny all; proxy_pass http://upstream_balancer; }}
  location / {{ proxy_pass http://upstream_balancer; }}
}}
"""


def _start_nginx(folder: Path) -> list[str]:
    (folder / "nginx.conf").write_text(_FRAME.format(folder=folder))
    return ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


def _ingress(folder: Path, port: int, upstream: int) -> list[str]:
    (folder / "site.conf").write_text(_INGRESS.format(port=port, upstream=upstream))
    return _start_nginx(folder)


def _nginx(folder: Path, port: int, upstream: int) -> list[str]:
    text = (DEPLOY / "nginx/mpesa-gateway.conf").read_text()
    text = _replaced(text, "listen 443 ssl;", f"listen 127.0.0.1:{port};")
    text = _replaced(text, "server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};")
    text = text.replace("/var/log/nginx/", f"{folder}/")
    lines = [line for line in text.splitlines() if not line.strip().startswith("ssl_")]
    (folder / "site.conf").write_text("\n".join(lines) + "\n")
    return _start_nginx(folder)


def _caddy(folder: Path, port: int, upstream: int) -> list[str]:
    text = (DEPLOY / "caddy/Caddyfile").read_text()
    text = _replaced(text, "\n{\n", "\n{\n\tadmin off\n")
    text = _replaced(text, "\npay.example.co.ke {\n\tlog\n", f"\nhttp://:{port} {{\n\tbind 127.0.0.1\n")
    text = _replaced(text, "reverse_proxy 127.0.0.1:8000", f"reverse_proxy 127.0.0.1:{upstream}")
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"expected once in the deploy file: {old!r}")
    return text.replace(old, new)
