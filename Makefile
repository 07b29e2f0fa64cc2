# Strand's commands. `make help` lists them; the list comes from the comments after `##`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory --no-builtin-rules

CARGO ?= cargo
PYTHON ?= python3
ARGS ?=
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/strand

# Runs a part of the tests under its name and says how long it took.
timed = @start=$$SECONDS; echo "==> $(1)"; $(2); echo "<== $(1): $$((SECONDS - start)) s"

.PHONY: help run cluster test torture torture-tests audit sim sim-mutants fuzz check demo doctor clean
.PHONY: bench bench-check bench-compare bench-etcd bench-memory bench-shards bench-snapshots bench-tantivy
.PHONY: part-format part-lint part-house part-rust part-python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

run: ## Build for speed and start one node on 127.0.0.1:8000, data in ./data/node1 (more flags: ARGS="--port 7000")
	@$(CARGO) build --release --locked --bin strand
	@echo
	@given() { sed -nE "s/.*(^| )($$1)[ =]([^ ]+).*/\3/p" <<<"$(ARGS)"; }; port=$$(given '-p|--port'); port=$${port:-8000}; \
	id=$$(given '--id'); data=$$(given '-d|--data-dir'); data=$${data:-./data/$${id:-node1}}; \
	echo "Strand starts on 127.0.0.1:$$port with its data in $$data; Ctrl-C stops it. From another terminal:"; \
	echo; \
	echo "  echo '{\"command\":\"SET\",\"key\":\"foo\",\"value\":\"bar\"}' | nc -q1 localhost $$port"; \
	echo "  $(BINARY) cli --port $$port"
	@echo
	@exec $(BINARY) serve $(ARGS)

cluster: ## Build for speed and run three nodes on 127.0.0.1:8000 to 8002 until Ctrl-C, data in ./data/cluster (ARGS="--set ...")
	@$(CARGO) build --release --locked --bin strand
	@exec demo/cluster.sh $(BINARY) $(ARGS)

test: part-format part-lint part-rust part-python ## Run everything that CI runs: format, lints, all tests
	@echo "All parts passed."

torture: ## Real nodes under faults, judged by what clients saw: MINUTES=10 (also PARTS= SEED= CUTS= WRITES= POINTS= KILLS= KEYS=); docs/TORTURE.md
	@$(CARGO) build --locked --release -p stranddb -p strand-torture --bin strand --bin strand-torture
	@$(CARGO) build --locked --release -p strand-torture-clock
	@exec $(dir $(BINARY))strand-torture $(foreach name,MINUTES PARTS SEED CUTS WRITES POINTS OPERATIONS KILLS KEYS SERVERS,$(if $($(name)),$(name)=$($(name))))

torture-tests: ## The tests of crashes, damage and bad input at length, a quarter of an hour (more: STRAND_KILL_ROUNDS=, STRAND_FLIPS=, STRAND_SEED=)
	@export STRAND_KILL_ROUNDS=$${STRAND_KILL_ROUNDS:-50} STRAND_FLIPS=$${STRAND_FLIPS:-1000} \
	  STRAND_BLOCKS=$${STRAND_BLOCKS:-200} STRAND_FUZZ_MS=$${STRAND_FUZZ_MS:-60000} STRAND_OVERWRITE_MIB=$${STRAND_OVERWRITE_MIB:-1000} \
	  STRAND_BATCH_MS=$${STRAND_BATCH_MS:-20000} STRAND_CLIENTS=$${STRAND_CLIENTS:-20000} \
	  STRAND_IO_FAULTS=$${STRAND_IO_FAULTS:-500} STRAND_BYTE_STRIDE=$${STRAND_BYTE_STRIDE:-1}; \
	  $(CARGO) test --locked -p shards --lib -- storage:: log:: && \
	  PROPTEST_CASES=$${STRAND_HISTORIES:-20000} $(CARGO) test --locked -p shards --lib -- log::tests::any_history log::tests::damage_never && \
	  $(CARGO) test --locked --test kill --test recovery --test bad_input --test durability --test order

audit: ## Licences, bans, sources and advisories of every dependency (cargo-deny; advisories only when their database can be had)
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "cargo-deny is missing: cargo install cargo-deny --locked"; exit 1; }
	@$(CARGO) deny --locked check bans licenses sources
	@if $(CARGO) deny --locked fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check advisories; \
	  else echo "The advisory database cannot be reached: advisories were not checked."; fi

sim: ## Simulate: SEED=7, or SEEDS=1..1000 (also FAULTS= REQUESTS= CLIENTS= WORK= SHARDS= NODES= THREADS=); docs/SIMULATION.md
	@$(CARGO) run --locked --quiet --profile sim -p strand-sim -- $(foreach name,SEED SEEDS FAULTS REQUESTS CLIENTS WORK SHARDS NODES META OLD LYING THREADS,$(if $($(name)),$(name)=$($(name))))

sim-mutants: ## Switch known defects on, one after another, and count the seeds until each is found (MUTANTS=TombstoneLost, SEEDS=1..500)
	@$(CARGO) run --locked --quiet --profile sim -p strand-sim --features mutants -- MUTANTS=$(or $(MUTANTS),all) $(if $(SEEDS),SEEDS=$(SEEDS))

fuzz: ## Fuzz everything that reads foreign bytes: TARGET=requests (all), EXECUTIONS=1000000 each, SEED=, THREADS=; findings stay in tests/fuzz/kept
	@$(CARGO) run --locked --quiet --profile sim -p strand-fuzz -- $(foreach name,TARGET EXECUTIONS SEED THREADS,$(if $($(name)),$(name)=$($(name))))

check: part-format part-lint part-house ## Format, lints and house rules: quick enough for every commit

demo: ## Start a node on a free port and show what it can do
	@$(CARGO) run --release --locked --bin strand -- demo $(ARGS)

bench: ## Micro-benchmarks of the engine, the front and the log (some of them: ARGS="-- step")
	@$(CARGO) bench --locked -p shards --bench engine --bench parts $(ARGS)
	@$(CARGO) bench --locked --bench log $(ARGS)
	@$(CARGO) bench --locked --bench front_cost

bench-check: ## Instructions a request against the committed baseline, within 5% (write a new one: UPDATE=1; needs valgrind)
	@command -v valgrind >/dev/null || { echo "valgrind is missing, which counts the instructions: apt-get install valgrind"; exit 1; }
	@$(CARGO) build --release --locked --example instructions
	@$(PYTHON) benches/instructions/check.py $(if $(UPDATE),--update) $(ARGS)

bench-compare: ## Compare with redis-server on this machine; writes docs/BENCHMARKS.md (ARGS="--help" for the flags)
	@$(CARGO) build --release --locked --bin strand
	@$(PYTHON) benches/compare/compare.py $(ARGS)

bench-etcd: ## Replicated durable writes of three nodes against etcd's; writes docs/BENCHMARKS.md (ARGS="--help")
	@$(CARGO) build --release --locked --bin strand
	@$(PYTHON) benches/compare/etcd.py $(ARGS)

bench-memory: ## Memory, snapshot and recovery of 1M and 10M keys against Redis; writes docs/BENCHMARKS.md (ARGS="--help")
	@$(CARGO) build --release --locked --bin strand
	@$(PYTHON) benches/compare/memory.py $(ARGS)

bench-snapshots: ## What writing snapshots does to the latency of reads; writes docs/BENCHMARKS.md (ARGS="--help")
	@$(CARGO) build --release --locked --bin strand
	@$(PYTHON) benches/compare/snapshots.py $(ARGS)

bench-shards: ## What a request costs with 1, 2 and 4 shards; writes docs/BENCHMARKS.md (ARGS="--help")
	@$(CARGO) build --release --locked --bin strand
	@$(PYTHON) benches/compare/curve.py $(ARGS)

bench-tantivy: ## Compare the text index with tantivy; makes the corpora, writes docs/BENCHMARKS.md (ARGS="--rounds 3 --print")
	@$(PYTHON) benches/tantivy/compare.py $(ARGS)

doctor: ## Say whether this machine can run Strand, and what to change
	@$(CARGO) run --locked --quiet --bin strand -- doctor $(ARGS)

clean: ## Remove what was built; data in ./data stays
	@$(CARGO) clean

part-format:
	$(call timed,format,$(CARGO) fmt --all --check)

part-lint:
	$(call timed,lints,$(CARGO) clippy --workspace --all-targets --locked -- -D warnings)

part-house:
	$(call timed,house rules,$(CARGO) test --locked --test house --test tuning)

part-rust:
	$(call timed,Rust tests,$(CARGO) test --workspace --locked)

part-python:
	$(call timed,Python client,(cd clients/python && $(PYTHON) -m unittest discover -s tests))
