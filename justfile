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

# the arm64 images of dgx-spark in a real engine, emulated on other machines (some minutes, 20 GB); OUT names a finished build
image-arm64 OUT="":
    ENVBUILDER_TEST_DGX_OUT='{{OUT}}' {{python}} -m pytest tests/integration/test_image_arm64.py -q --durations 5

# put the code in order
format:
    {{python}} -m ruff check --fix .
    {{python}} -m ruff format .

# environments, no-op build and symbol check, side by side; OUT is a finished build of target cpu
bench-build OUT=".envbuilder/cpu":
    {{python}} bench/build.py {{OUT}}

# the symbol check against pyelftools; ENV is an environment of any architecture
bench-abi ENV:
    {{python}} bench/abi.py {{ENV}}

# GPU code against cuobjdump; ENV holds vllm/
bench-gpu-code ENV CUOBJDUMP:
    {{python}} bench/gpu_code.py {{ENV}} {{CUOBJDUMP}}

# mutate real ELF files: no traceback, no hang, no flood (PATHS: files or folders; default: this machine's libraries)
fuzz-binaries CASES="20000" *PATHS:
    PYTHONPATH=. {{python}} tests/fuzz/binaries.py --cases {{CASES}} {{PATHS}}

# the map of vLLM and torch releases, from the package index (minutes, some 20 GB over the network), and its picture
atlas:
    bin/envbuilder atlas update
    bin/envbuilder atlas picture docs/atlas.svg

# resolve every lock again from the index (needs the network)
relock:
    for target in cpu cuda dgx-spark; do bin/envbuilder lock --target $target; done

# the project's own locks, from pyproject.toml
relock-tools:
    {{python}} bin/relock.py
