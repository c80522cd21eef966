# Two commands do everything: `make reproduce` (Table 1, quick) and `make test`. Both set themselves up.
PYTHON   ?= python3
PROTOCOL ?= quick
SEEDS    ?= 1
WORKERS  ?= 2
DATA     ?= real
ARGS     ?=

export OMP_WAIT_POLICY = PASSIVE
# An active conda environment that was made from environment.yml is used as it is; else .venv is made.
ifeq ($(CONDA_DEFAULT_ENV),stn)
PY = "$(CONDA_PREFIX)/bin/python"
else
PY = .venv/bin/python
endif
RUN = $(PY) -m experiments.
REPRODUCE = $(RUN)reproduce protocol=$(PROTOCOL) seeds=$(SEEDS) workers=$(WORKERS) data=$(DATA)

.PHONY: help bench reproduce reproduce-table1 reproduce-table2 reproduce-table3 reproduce-table4 reproduce-table5 reproduce-3d reproduce-birds sweep test lint tables report dashboard figures data data-svhn data-cub setup clean
.DEFAULT_GOAL := help

# What `quick` begins with, for birds, learned from drawn ones: real birds want another protocol.
ifeq ($(origin PROTOCOL) $(DATA),file real)
reproduce-table3 reproduce-birds: PROTOCOL = fast
endif

# A part of the real data has a protocol of its own.
ifeq ($(origin PROTOCOL) $(DATA),file subset)
PROTOCOL = part
endif

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ —/'

reproduce: setup data   ## set up, train and print Table 1 at protocol=quick (15 to 20 minutes on 2 cores)
	$(REPRODUCE) table=table1 tasks=[mnist_r,mnist_rts,mnist_p,mnist_e] $(ARGS)

reproduce-table1: setup data  ## Table 1, distorted MNIST: PROTOCOL=quick|fast|modern|paper SEEDS=n WORKERS=n ARGS="any=override"
	$(REPRODUCE) table=table1 $(ARGS)

reproduce-table2: setup  ## Table 2, house numbers: after `make data-svhn`, or with DATA=subset, DATA=standin
	$(REPRODUCE) table=table2 $(ARGS)

reproduce-table3: setup  ## Table 3, birds: after `make data-cub` (at fast, unless PROTOCOL is given), or with DATA=subset, DATA=standin
	$(REPRODUCE) table=table3 $(ARGS)

reproduce-table4: setup data  ## Table 4, MNIST addition
	$(REPRODUCE) table=table4 $(ARGS)

reproduce-table5: setup data  ## Table 5, co-localisation (trains its encoder first)
	$(REPRODUCE) table=table5 $(ARGS)

reproduce-3d: setup data  ## App. A.3, digits in volumes
	$(REPRODUCE) table=table3d $(ARGS)

reproduce-birds: setup  ## App. A.2 on birds, co-localisation: after `make data-cub`, or with DATA=subset, DATA=standin
	$(REPRODUCE) table=tablecubcoloc $(ARGS)

sweep: setup     ## search settings on held-out digits: ARGS="sweep=localiser task=mnist_e …"
	$(RUN)sweep workers=$(WORKERS) $(ARGS)

test: setup      ## the tests
	$(PY) -m pytest -n 2 --dist worksteal

lint: setup      ## style, and the types of the library
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

tables: setup    ## render results/tables from the committed records alone
	$(RUN)tables

report: setup    ## results/report.html: all tables, claims, curves and pictures on one page, each number with its runs
	$(RUN)report $(ARGS)

dashboard: setup ## W&B workspace and report of the tracked runs (needs an account, and pip install -e '.[dashboard]')
	@$(RUN)dashboard $(ARGS) </dev/null

bench: setup data   ## measure speed: Lightning's loop, a training step and its parts, the SVHN networks
	$(RUN)bench $(ARGS)
	$(RUN)bench_svhn

figures: setup data  ## draw Table 1's figures from records and trained weights (others: ARGS=table=table4)
	$(RUN)figures table=table1 protocol=$(PROTOCOL) data=$(DATA) $(ARGS)

data: setup      ## fetch and check MNIST
	$(RUN)prepare dataset=mnist

data-svhn: setup ## fetch, check and cut out SVHN's whole numbers (2.6 GB)
	$(RUN)prepare dataset=svhn $(ARGS)

data-cub: setup  ## fetch, check, unpack and decode CUB-200-2011 (1.2 GB)
	$(RUN)prepare dataset=cub $(ARGS)

setup:           ## .venv with the pinned dependencies; or the active conda environment `stn`
ifeq ($(PY),.venv/bin/python)
setup: .venv/.installed
else
	@cd / && $(PY) -c 'import stn, experiments' 2>/dev/null || { cd "$(CURDIR)" && $(INSTALL_CHECKOUT); }
endif

# The verbs are no part of the package: the .pth file lets `python -m experiments.…` find them from any folder.
INSTALL_CHECKOUT = $(PY) -m pip install --quiet --no-deps --editable . && \
	echo "$(CURDIR)" > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/stn_checkout.pth"

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …" >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode -r requirements.lock
	$(INSTALL_CHECKOUT)
	touch $@

clean:           ## remove the environment, checkpoints and caches; records and tables stay
	rm -rf .venv outputs multirun .pytest_cache .ruff_cache
