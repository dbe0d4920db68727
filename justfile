# Recipes for people who work on envbuilder. `just` comes with the test environment: .venv-test/bin/just

python := justfile_directory() / ".venv-test/bin/python"

# style, types and unit tests
test:
    bin/test

# everything that continuous integration runs
ci:
    bash .ci/run

# one part of the integration tests, for example: just integration test_build_cpu
integration NAME:
    {{python}} -m pytest tests/integration/{{NAME}}.py --timeout 1500 -q

# put the code in order
format:
    {{python}} -m ruff check --fix .
    {{python}} -m ruff format .

# environments, no-op build and symbol check, side by side; OUT is a finished build of target cpu
bench-build OUT=".envbuilder/cpu":
    {{python}} bench/build.py {{OUT}}

# resolve every lock again from the index (needs the network)
relock:
    for target in cpu cuda dgx-spark; do bin/envbuilder lock --target $target; done

# the project's own locks, from pyproject.toml
relock-tools:
    {{python}} bin/relock.py
