# `make` alone lists the targets.

PYTHON ?= python3
JOBS ?= 2
ROOT_JOBS ?= $(shell expr 3 '*' $(JOBS) - 1)
ARGS ?=
# Each direct dependency at the lowest version that setup.py takes.
LOWEST ?=
# A folder for pytest's JUnit files: one for each time that a target starts it.
JUNIT ?=
# "make dist": with compiled modules.
COMPILE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
COMPILED := $(VENV)/compiled
# Whether the hot packages can be compiled: by a C compiler, and the headers of the Python that runs them.
CAN_COMPILE = { command -v cc >/dev/null && $(BIN)/python -c "$(HAS_HEADERS)"; }
HAS_HEADERS = import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))
CODE = $(wildcard smtstack workloads topo controllers tests examples docs/draw.py smtnet.py)
# What runs need besides Python: a program, and Debian's and Ubuntu's package that brings it.
PROGRAMS := ip:iproute2 tc:iproute2 ethtool:ethtool ping:iputils-ping ifconfig:net-tools unshare:util-linux \
	ovs-vswitchd:openvswitch-switch ovsdb-server:openvswitch-switch mnexec:mininet \
	redis-check-rdb:redis-tools knotd:knot tshark:tshark editcap:wireshark-common openssl:openssl \
	cc:gcc cc:libc6-dev

# What a guest is made by, and runs in (smtnet vm).
VM_PROGRAMS := qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs arch-test:arch-test \
	setpriv:util-linux tar:tar

# Each recipe is one shell script that stops at its first failure.
.ONESHELL:
.SHELLFLAGS := -ec
.PHONY: help venv system demo check test vm-test lint bench compiled built dist clean

junit = $(if $(JUNIT),--junitxml=$(JUNIT)/$(1).xml)

# Images of containers often set it. Each of the hundreds of processes that tests and runs start would then compile
# what it imports, and each worker of pytest rewrite all tests: a third of the time of all. "make clean" removes it.
unexport PYTHONDONTWRITEBYTECODE

# $(call install,WHO,PACKAGES): by apt-get, quiet unless it fails. The index is fetched only where the one
# that is there (none, in an image) does not do.
# policy-rc.d: Open vSwitch's daemon is to start once it is installed, and where no init runs that fails the
# installation. 101 is "not allowed". Runs start daemons of their own.
define install
if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "$(1): packages are missing; run: sudo apt-get install --no-install-recommends $(2)" >&2
	exit 1
fi
echo "$(1): installing packages:" $(2)
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
log=$$(mktemp)
policy=/usr/sbin/policy-rc.d
if [ -d /run/systemd/system ] || [ -e $$policy ]; then policy=; else
	printf '#!/bin/sh\nexit 101\n' >$$policy
	chmod 755 $$policy
fi
trap 'rm -f $$log $$policy' EXIT
trap 'exit 1' INT TERM
apt() { apt-get -qq -o DPkg::Lock::Timeout=300 "$$@" </dev/null >>$$log 2>&1; }
apt install -y --no-install-recommends $(2) || {
	: >$$log
	apt update && apt install -y --no-install-recommends $(2)
} || {
	cat $$log >&2
	echo "$(1): apt-get could not install:" $(2) >&2
	exit 1
}
rm -f $$log $$policy
endef

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile
	echo 'Variables: PYTHON=$(PYTHON) (for the venv), JOBS=$(JOBS) (test workers), ROOT_JOBS=$(ROOT_JOBS) (as root: half of its tests mostly wait), ARGS= (for pytest, demo or bench wire),'
	echo '  LOWEST=yes (a venv of the oldest dependencies that will do), JUNIT= (a folder for JUnit files), COMPILE=yes (dist: with compiled modules)'

venv: built  ## build or repair .venv, with the command .venv/bin/smtnet

system:  ## install what is missing: Open vSwitch, Mininet's mnexec, tc, ethtool, ping, Redis, Knot DNS, tshark, a C compiler
	@PATH=$$PATH:/usr/sbin:/sbin  # which a user lacks
	missing=
	for pair in $(PROGRAMS); do
		command -v "$${pair%:*}" >/dev/null || missing="$$missing$${missing:+ }$${pair#*:}"
	done
	# A distribution's Python has its headers in a package of their own; other Pythons bring them along.
	missing="$$missing $$($(PYTHON) -c "import os, sys, sysconfig; include = sysconfig.get_path('include'); \
		print('' if os.path.exists(include + '/Python.h') or not include.startswith('/usr/include') \
		else 'python{}.{}-dev'.format(*sys.version_info))" 2>/dev/null)"
	[ -n "$${missing# }" ] || exit 0
	missing=$$(printf '%s\n' $$missing | sort -u | tr '\n' ' ')
	$(call install,system,$$missing)

demo: system built  ## compare smt, homa, tcp and tls: table, pictures and report in results/ (root)
	@$(BIN)/smtnet demo $(ARGS)

# Types and tests side by side: without a cache, as on a hosted machine, mypy takes as long as the tests do.
# What failed last is first, then what was edited last.
check: $(STAMP)  ## in a minute, without root: ruff, mypy, and the tests that are quick (tests/slow.txt has the others)
	@echo 'check: ruff; mypy beside $(JOBS) workers with all tests but those marked root or slow'
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary $(CODE) & mypy=$$!
	trap 'kill $$mypy 2>/dev/null || true; exit 130' INT TERM
	failed=0
	SMTNET_COMPILED=no $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not root and not slow' --ff --nf $(call junit,check) $(ARGS) || failed=$$?
	wait $$mypy || failed=$$?
	exit $$failed

test: $(if $(filter 0,$(shell id -u)),system) $(STAMP)  ## lint, then all tests (those marked root only when root)
	@pytest="$(BIN)/python -m pytest"
	# pytest rewrites every test's asserts and keeps that: here once, beside the linters, or each worker would do it.
	$$pytest -q --collect-only >/dev/null 2>&1 & collecting=$$!
	trap 'kill $$collecting $$building 2>/dev/null || true' EXIT
	$(MAKE) --no-print-directory built & building=$$!
	$(MAKE) --no-print-directory lint
	wait $$building
	wait $$collecting || true  # what is wrong there, the tests say
	# Where a build can be, it is what is tested, and none would be an error. The sources then pass what touches it.
	if $(CAN_COMPILE); then
		echo 'test: $(JOBS) workers, the sources of what is compiled (tests/builds.py)'
		SMTNET_COMPILED=no $$pytest -q -n $(JOBS) --dist worksteal -m 'both or interpreted' $(call junit,interpreted) $(or $(ARGS),$$($(BIN)/python -m tests.builds)) || [ $$? -eq 5 ]
		export SMTNET_COMPILED=yes
	fi
	if [ "$$(id -u)" -ne 0 ]; then
		exec $$pytest -n $(JOBS) --dist worksteal $(call junit,test) $(ARGS)  # conftest.py skips the root tests and says why
	fi
	# Those marked root mostly wait, so there are more workers than cores, and all have some of them, each in a sandbox
	# of its own: tests/conftest.py. pytest's 5 is "none selected", which only ARGS can bring about: say nothing then.
	some() { $(if $(strip $(ARGS)),$$pytest -q --collect-only -m "$$1" $(ARGS) >/dev/null 2>&1 || [ $$? -ne 5 ],:); }
	# As if they were alone, one by one: the scheduler lets each go before all others. A container may forbid that.
	alone=alone
	if ! chrt -r 1 true 2>/dev/null; then
		alone='alone or first'
	elif some 'first'; then
		log=$$(mktemp)
		chrt -r 1 $$pytest -n 1 -q -m first $(call junit,first) $(or $(ARGS),tests/net) >$$log 2>&1 & first=$$!
		trap '[ -z "$$first" ] || kill $$first 2>/dev/null || true; rm -f $$log' EXIT
	fi
	if some 'not alone and not first'; then
		echo 'test: $(ROOT_JOBS) workers, each in a sandbox'
		$$pytest -n $(ROOT_JOBS) --dist worksteal -m 'not alone and not first' $(call junit,test) $(ARGS)
	fi
	if [ -n "$$first" ]; then
		echo 'test: meanwhile, one by one, the tests that must not wait for a processor'
		wait $$first && failed=0 || failed=$$?
		first=
		cat $$log
		[ $$failed -eq 0 ] || exit $$failed
	fi
	if some "$$alone"; then
		echo 'test: one by one, the tests that need the machine to themselves'
		$$pytest -n 1 -q -m "$$alone" $(call junit,alone) $(or $(ARGS),tests/net)
	fi

# What a guest needs is installed for this target alone. It wants root where there is no image yet; not to run one.
vm-test: $(STAMP)  ## the tests that this kernel cannot run, in a guest with a stock one (minutes; RELEASE=debian-13)
	@PATH=$$PATH:/usr/sbin:/sbin
	missing=
	for pair in $(VM_PROGRAMS); do
		command -v "$${pair%:*}" >/dev/null || missing="$$missing$${missing:+ }$${pair#*:}"
	done
	# In a shell of its own: it clears up when that ends, and "exec" would forget it.
	[ -z "$$missing" ] || ( $(call install,vm-test,$$missing) )
	exec $(BIN)/smtnet vm test $(if $(RELEASE),--release $(RELEASE)) $(ARGS)

lint: $(STAMP)  ## ruff and mypy; check-jsonschema and zizmor for the hosted workflow
	@echo 'lint: ruff, mypy, check-jsonschema, zizmor'
	$(BIN)/ruff check --quiet .
	if [ -x $(BIN)/zizmor ]; then
		workflows=$$(echo .github/workflows/*.yml)
		$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows $$workflows
		# Also without findings it has something to say.
		found=$$($(BIN)/zizmor --quiet --no-progress --offline --persona=pedantic $$workflows) || { echo "$$found" >&2; exit 1; }
	else
		echo 'lint: the linters for workflows are left out: they need Python 3.11' >&2
	fi
	$(BIN)/mypy --no-error-summary $(CODE)

bench: $(if $(filter 0,$(shell id -u)),system) built  ## speeds as ratios (smt/tls, homa/tcp), interpreted and compiled; some minutes
	@bench() {
		$(BIN)/smtnet bench memory
		if [ "$$(id -u)" -ne 0 ]; then
			echo 'bench: not root: the half on a cable (smtnet bench wire) is left out' >&2
		else
			$(BIN)/smtnet bench wire $(ARGS)
			$(BIN)/smtnet reproduce fig8 --quick
		fi
	}
	export SMTNET_COMPILED=no
	bench
	if $(CAN_COMPILE); then
		export SMTNET_COMPILED=yes
		bench
		[ "$$(id -u)" -ne 0 ] || $(BIN)/smtnet bench aims
	else
		echo 'bench: no C compiler (cc): the compiled half is left out' >&2
	fi

# What people get. Where that cannot be, or fails, all runs interpreted, and says so ("smtnet --version").
built: $(STAMP)
	@if ! $(CAN_COMPILE); then
		echo 'compiled: no C compiler (cc), or no headers of this Python: smtnet runs interpreted' >&2
	else
		$(MAKE) --no-print-directory compiled || echo 'compiled: that failed: smtnet runs interpreted' >&2
	fi

compiled: $(COMPILED)/smtstack/build.json  ## compile the hot packages by mypyc anew; demo, test and bench do it by themselves

# Beside the sources: a compiled module in the checkout would hide every later edit of its source. smtstack/compiled.py
# finds it there, and knows a stale one. The record is written last.
$(COMPILED)/smtstack/build.json: $(STAMP) $(wildcard smtstack/*.py smtstack/*/*.py)
	@echo 'compiled: mypyc and cc: half a minute the first time, then what has changed'
	build() { SMTNET_MYPYC=1 $(BIN)/python -W ignore setup.py -q build_ext --build-temp=$(COMPILED)-base --build-lib=$(COMPILED) >$(VENV)/compiled.log 2>&1; }
	# After modules came or went, mypyc may leave C code that fits the others no more: then all of it is made anew.
	build || { rm -rf $(COMPILED)-c $(COMPILED)-base; build; } || { cat $(VENV)/compiled.log >&2; exit 1; }

dist: $(STAMP)  ## a wheel and a source archive in dist/, the same bytes from the same commit; COMPILE=yes: compiled modules in the wheel
	@echo 'dist: $(if $(COMPILE),a minute or so: mypyc and cc,some seconds)' >&2
	$(BIN)/python -m tests.packages dist $(if $(COMPILE),--compiled)

clean:  ## remove the venv, build products and caches; results/ stays
	@rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last and holds this checkout's path, and LOWEST. Not readable with the venv's own Python,
# or other words: the build was cut short, Python went away, or .venv came along in a copy of the
# checkout (and would run the original's code). Each means: build anew.
MADE := $(strip $(CURDIR) $(if $(LOWEST),lowest))
ifneq ($(shell $(BIN)/python -c 'print(open("$(STAMP)").read())' 2>/dev/null),$(MADE))
.PHONY: $(STAMP)
ANEW := yes
endif

# constraints/build.txt says why the build needs an old setuptools. pip before 25.3 takes it from
# PIP_CONSTRAINT for build environments too, later ones only from PIP_BUILD_CONSTRAINT. smtnet itself
# builds under it as well (editable installs need 64), and its wheel on every Python from 3.10 on.
# --use-pep517: pip 23.0 (Debian 12, Python 3.10) would otherwise run ryu's setup.py with no constraint.
# -qq: of pip, only errors.
$(STAMP): setup.py pyproject.toml constraints/build.txt Makefile
	@if [ -n "$(ANEW)" ]; then
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
			echo 'venv: "$(PYTHON)" is no Python >= 3.10; name one: make venv PYTHON=python3.11' >&2
			exit 1
		}
		# Debian and Ubuntu keep this half of the standard library in a package of its own.
		if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then
			$(call install,venv,python3-venv)
		fi
		echo "venv: creating $(VENV) with $$($(PYTHON) --version)"
		$(PYTHON) -m venv --clear $(VENV)
	fi
	rm -f $(STAMP)
	echo 'venv: installing smtnet and all it needs (a minute or so, this once)'
	export PIP_CONSTRAINT=constraints/build.txt PIP_BUILD_CONSTRAINT=constraints/build.txt
	if [ -n '$(LOWEST)' ]; then
		$(BIN)/python tests/lowest.py >$(VENV)/lowest.txt
		PIP_CONSTRAINT="$$PIP_CONSTRAINT $(VENV)/lowest.txt"
	fi
	# pip would compile what it installs by one processor.
	$(BIN)/python -m pip install -qq --no-compile --use-pep517 -e '.[test,dev,plot,ui,session,kv,quic,sqlite,sweep]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages hold what other Pythons are for
	printf '%s' '$(MADE)' >$(STAMP)
	echo 'venv: ready: $(BIN)/smtnet'
