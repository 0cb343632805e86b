# Everything that is done here by hand, one recipe each. `just` itself comes with requirements/test.txt.

export URLLIB3_NO_OVERRIDE := "1"

# The Python that .venv is made of.
python := env("PYTHON", "python3")

[private]
default:
    @just --list --unsorted

# Install the project and all its tools into .venv (once, and whenever requirements/ changed)
setup:
    test -x .venv/bin/python || {{ python }} -m venv .venv
    .venv/bin/pip install -q -r requirements/test.txt -e .

[private]
ready:
    @test -x .venv/bin/ruff || {{ just_executable() }} setup

# Play the whole story against the running `up`, or one started for it
demo *options: ready
    .venv/bin/mpesa-gateway demo {{ options }}

# Run the gateway with its own Postgres, Valkey and Daraja simulator; data stays in ./data
up *options: ready
    .venv/bin/mpesa-gateway up {{ options }}

# Run the gateway as `up` does, and start it again whenever a source file changes
dev *options: ready
    #!/usr/bin/env bash
    set -euo pipefail
    set -m # `up` gets a process group of its own: Ctrl-C reaches this loop, which then stops it
    stamp=$(mktemp)
    up=
    stop() { [ -z "$up" ] || { kill -INT "$up" 2>/dev/null || true; wait "$up" || true; }; }
    trap 'stop; rm -f "$stamp"' EXIT
    trap 'exit 130' INT TERM
    changed() {
      find mpesa_gateway plugins config -newer "$stamp" \( -name '*.py' -o -name '*.sql' -o -name '*.toml' \) -print -quit
    }
    while true; do
      touch "$stamp"
      .venv/bin/mpesa-gateway up {{ options }} &
      up=$!
      until [ -n "$(changed)" ]; do sleep 1; done
      echo "$(changed) changed: starting again"
      stop
    done

# Run the tests: all, or those that the arguments name
test *arguments: ready
    .venv/bin/python -m pytest {{ arguments }}

# Look at the pages in Debian's Chromium (`apt-get install chromium`); with SCREENSHOTS=1, draw docs/screenshots anew
browser *arguments: ready
    .venv/bin/pip install -q -r requirements/browser.txt
    .venv/bin/python -m pytest tests/browser {{ arguments }}

# Try what is in deploy/: each file by its tool's linter or schema, and the proxies for real (`apt-get install caddy nginx systemd`)
deploy-check *arguments: ready
    .venv/bin/pip install -q -r requirements/deploy.txt
    .venv/bin/python -m pytest tests/deploy {{ arguments }}

# Run what the docs show that brings packages, in a virtual environment for each page
installing *arguments: ready
    .venv/bin/python -m pytest tests/installing -o faulthandler_timeout=1500 {{ arguments }}

# Try other people's code: SDKs against the simulator, doubles under the gateway, verifiers, generated clients (`apt-get install nodejs npm`)
interop *arguments: ready
    .venv/bin/python -m pytest tests/interop {{ arguments }}

# Run the core journeys against Debian's PostgreSQL 15 and Redis 7 (`apt-get install postgresql-15 redis-server`)
debian *arguments: ready
    .ci/debian {{ arguments }}

# Run the gateway behind PgBouncer in transaction mode (`apt-get install pgbouncer`)
pooler *arguments: ready
    .venv/bin/python -m pytest tests/pooler {{ arguments }}

# Play many long examples of the model test, make what it finds short, and say what was reached
model examples="200" *arguments: ready
    MPESA_GATEWAY_TEST_EXAMPLES={{ examples }} .venv/bin/python -m pytest tests/model -o faulthandler_timeout=7200 {{ arguments }}

# Try every property with examples of its own: the suite plays the same ones in each run
explore *arguments: ready
    MPESA_GATEWAY_TEST_EXAMPLES=20 .venv/bin/python -m pytest -m hypothesis -o faulthandler_timeout=7200 {{ arguments }}

# Let all paths lock the same rows against each other, and count deadlocks: 1,000 rounds, or as many as named
deadlocks rounds="1000" *arguments: ready
    MPESA_GATEWAY_TEST_ROUNDS={{ rounds }} .venv/bin/python -m pytest tests/journeys/test_lock_order.py -n 2 --dist load \
        -k run_concurrently -o faulthandler_timeout=14400 {{ arguments }}

# Record the locks of every transaction of the tests: one that locks rows out of order fails its test
locks *arguments="tests/plugins tests/journeys": ready
    MPESA_GATEWAY_TEST_LOCKS=1 .venv/bin/python -m pytest -n 2 {{ arguments }}

# Break everything around a gateway at work, and compare its books with what really happened
chaos *options: ready
    .venv/bin/python -m bench.chaos {{ options }}

# Measure what this machine carries, hold 70 % of it for ten minutes while things break, and then offer three times as much
soak *options: ready
    .venv/bin/python -m bench.soak {{ options }}

# Try every call of the API as the OpenAPI document describes it, and as it does not
schemathesis *options: ready
    .venv/bin/python -m bench.schema {{ options }}

# Generate Python and TypeScript clients from the OpenAPI document; each makes a payment (`apt-get install nodejs npm`)
clients: ready
    .venv/bin/python -m bench.clients

# Generate docs/reference from the code; `--check` only reports outdated pages
reference *options: ready
    .venv/bin/python -m docs.site.reference {{ options }}

# Build the documentation as a site in dist/docs, in an environment of its own; fails on a broken link
docs: ready
    test -x .bench/venv-docs/bin/python || {{ python }} -m venv .bench/venv-docs
    .bench/venv-docs/bin/pip install -q -r requirements/docs.txt
    .bench/venv-docs/bin/sphinx-build -q --nitpicky --fail-on-warning --keep-going --fresh-env \
        --conf-dir docs/site --doctree-dir .bench/doctrees . dist/docs

# Measure how fast the gateway is, beside its limits and its peers: docs/performance.md
bench *options: ready
    .venv/bin/python -m bench.speed {{ options }}

# Measure what a completed STK payment costs in Postgres, by table and index: docs/performance.md
sizes *options: ready
    .venv/bin/python -m bench.sizes {{ options }}

# Measure webhooks and expiry while every question to M-Pesa hangs: docs/performance.md
bench-isolation *options: ready
    .venv/bin/python -m bench.isolation {{ options }}

# Attack the gateway directly and through nginx, Caddy and ingress-nginx's settings (`apt-get install caddy nginx`): docs/security.md
attack *options: ready
    .venv/bin/python -m bench.attack {{ options }}

# Look for mistakes with ruff, and at the direction of imports
lint: ready
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/lint-imports --no-cache --no-logo

# Mend what ruff can mend, and format
fix: ready
    .venv/bin/ruff check --fix-only
    .venv/bin/ruff format

# All that CI checks besides the tests: lint, mypy and pyright
check: lint
    .venv/bin/mypy
    .venv/bin/pyright --pythonpath .venv/bin/python

# Bring the database of the settings to the present release; `up` does it when it starts
migrate: ready
    .venv/bin/mpesa-gateway migrate

# Make an API key for a merchant of the running `up`: `just apikey mer_… --name shop`
apikey merchant_id *options: ready
    .venv/bin/mpesa-gateway apikeys create {{ merchant_id }} {{ options }}

# Write requirements/*.txt anew from pyproject.toml, with the newest versions it allows
pins: ready
    .venv/bin/pip install -q uv
    {{ compile }} --extra standalone --extra otel -o requirements/run.txt
    {{ compile }} --extra standalone --extra otel --group test --group lint --group tools -o requirements/test.txt
    @{{ just_executable() }} hashes
    for it in peer-django peer-fastapi schemathesis clients browser deploy docs; do {{ pin }} requirements/$it.in -o requirements/$it.txt; done

# Write requirements/*.hashes.txt anew: the SHA-256 of every file of the versions that are pinned
hashes: ready
    .venv/bin/pip install -q uv
    {{ hash }} pyproject.toml --extra otel -c requirements/run.txt -o requirements/image.hashes.txt
    {{ hash }} pyproject.toml --extra standalone --extra otel --group test --group lint --group tools \
        -c requirements/test.txt -o requirements/test.hashes.txt

hash := ".venv/bin/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate" + \
    " --no-emit-index-url --emit-build-options --generate-hashes --strip-extras"
pin := ".venv/bin/uv pip compile -q --upgrade --universal --python-version 3.11" + \
    " --no-header --no-annotate --no-emit-index-url"
compile := pin + " --emit-build-options pyproject.toml"
