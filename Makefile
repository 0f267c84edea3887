# Long work is cached in .cache, which git ignores and make clean removes.

MAKEFLAGS += --no-print-directory
TESTFLAGS ?= -race -count=1 -timeout=30m
BENCH     ?= .
DURATION  ?= 5m
FUZZTIME  ?= 20

# make splits at spaces, and a recipe that removes a folder must not remove another.
ifneq ($(words $(CURDIR)),1)
$(error the path of this checkout has a space in it, which make cannot handle: $(CURDIR))
endif

CACHE := $(CURDIR)/.cache
# The linter's version is the one in tools/go.mod; built by another Go it may refuse the code.
LINT   = $(CACHE)/bin/golangci-lint-$(shell awk '$$1 ~ /golangci-lint\/v2$$/ { print $$2 }' tools/go.mod)-$(shell go env GOVERSION)

REPORTS := $(CACHE)/conformance

export GOLANGCI_LINT_CACHE := $(CACHE)/golangci-lint

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: test
test: ## run every test of every module with the race detector; gets and starts the servers they need
	@rm -rf "$(REPORTS)" && mkdir -p "$(REPORTS)"
	@IDEM_CONFORMANCE=$(REPORTS) IDEM_HISTORIES=15 IDEM_TORTURE_DURATION=5m .ci/with-servers .ci/each go test $(TESTFLAGS) ./...
	@go run ./internal/conformance -reports $(REPORTS) -doc docs/stores.md -check

# It runs the tests that have Store in their names: a suite's run under another is not in the table.
.PHONY: conformance
conformance: ## run the stores' conformance suite on every server, and write its table into docs/stores.md
	@rm -rf "$(REPORTS)" && mkdir -p "$(REPORTS)"
	@IDEM_CONFORMANCE=$(REPORTS) .ci/with-servers go test -count=1 -timeout=15m -run=Store ./idem/store/...
	@go run ./internal/conformance -reports $(REPORTS) -doc docs/stores.md

.PHONY: test-short
test-short: ## run the root module's tests with what the machine has; tests without their server are skipped
	@go test ./...

.PHONY: lint
lint: ## run golangci-lint on every module; builds it first, once
	@$(MAKE) $(LINT)
	@$(LINT) config verify
	@.ci/each $(LINT) run --allow-serial-runners

$(CACHE)/bin/golangci-lint-%:
	@echo "== building golangci-lint, which takes minutes, once"
	@mkdir -p $(@D)
	@go build -C tools -ldflags='-s -w' -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: fmt
fmt: ## format all Go files
	@$(MAKE) $(LINT)
	@.ci/each $(LINT) fmt

.PHONY: cover
cover: ## measure how much of idem and consumers the tests reach, per package and in all
	@mkdir -p $(CACHE)
	@.ci/with-servers go test -count=1 -covermode=atomic -coverpkg=./idem/...,./consumers/... -coverprofile=$(CACHE)/cover.out ./idem/... ./consumers/...
	@.ci/cover $(CACHE)/cover.out
	@echo "line by line: go tool cover -html=.cache/cover.out"

# SEED, SITE=kafka-*/redis,nats/*, ROUND=20s, and AHEAD, NEAR, BATCH, WORK and PGX=on or off choose; REPORT=1 also has
# the planted bugs found, and writes docs/faults.md, from all results that are in e2e/.torture.
.PHONY: torture
torture: ## run consumers of every broker with every store under faults (DURATION, SEED, SITE, ROUND, AHEAD, NEAR, BATCH, WORK, PGX, REPORT=1)
	@.ci/with-servers go test -C e2e -count=1 -v -timeout=0 -run='^Test(Torture$(if $(REPORT),|PlantedBugs))$$' ./torture \
		-torture.duration=$(DURATION) $(if $(SEED),-torture.seed=$(SEED)) $(if $(SITE),-torture.site='$(SITE)') \
		$(if $(ROUND),-torture.round=$(ROUND)) $(if $(AHEAD),-torture.ahead=$(AHEAD)) $(if $(NEAR),-torture.near=$(NEAR)) \
		$(if $(BATCH),-torture.batch=$(BATCH)) $(if $(WORK),-torture.work=$(WORK)) $(if $(PGX),-torture.pgx=$(PGX)) \
		$(if $(REPORT),-torture.report=$(CURDIR)/docs/faults.md)

.PHONY: soak
soak: ## run consumers of all brokers under faults, and look whether they grow (DURATION, SEED, REPORT=1)
	@.ci/with-servers go test -C e2e -count=1 -v -timeout=0 -run='^TestSoak$$' ./torture \
		-torture.soak=$(DURATION) $(if $(SEED),-torture.seed=$(SEED)) $(if $(REPORT),-torture.soakdocs=$(CURDIR)/docs)

.PHONY: model
model: ## explore the model of a token's states whole, which takes hours, or STATES of each; CONFIG=beginnings of names
	@go run -C e2e ./model/cmd/explore $(if $(STATES),-states $(STATES)) $(CONFIG)

.PHONY: fuzz
fuzz: ## fuzz what reads bytes from outside, FUZZTIME=20 seconds each target
	@.ci/with-servers .ci/fuzz $(FUZZTIME)

.PHONY: audit
audit: ## look for known vulnerabilities, and for licences that are not allowed
	@.ci/vulncheck
	@.ci/licences

.PHONY: microbench
microbench: ## run the Go benchmarks of every module (BENCH=regexp chooses)
	@.ci/with-servers .ci/each go test -run='^$$' -bench='$(BENCH)' -benchmem ./...

# BASE=commit; BENCH is a regexp of benchmarks, which take long together; COUNT=6 runs of each.
.PHONY: benchstat
benchstat: ## compare the Go benchmarks of the work tree with those of BASE, by default the last release (BENCH, COUNT)
	@.ci/with-servers .ci/benchstat '$(BASE)' '$(BENCH)' $(COUNT)

# ROWS=Kafka/ or ROWS='/idem' chooses rows by a regexp, PARTS=rows,do parts.
BENCH_ARGS = $(if $(ROWS), ROWS=$(ROWS))$(if $(PARTS), PARTS=$(PARTS))
COMPARE = .ci/with-servers go test -C bench -count=1 -v -timeout=0 -run='^TestCompare$$' . $(if $(ROWS),-compare.rows='$(ROWS)') $(if $(PARTS),-compare.parts='$(PARTS)')

.PHONY: bench
bench: ## measure consumers beside what people run today, three rounds (ROWS, PARTS), and write docs/performance.md
	@$(COMPARE) -compare.messages=200000 -compare.docs=$(CURDIR)/docs -compare.command='make bench$(BENCH_ARGS)'

.PHONY: bench-quick
bench-quick: ## the same in some minutes, with too few messages to quote, and print it (ROWS, PARTS)
	@$(COMPARE) -compare.messages=10000 -compare.rounds=1 -compare.quick -compare.command='make bench-quick$(BENCH_ARGS)'

.PHONY: bench-soak
bench-soak: ## consume MESSAGES=10000000 from Kafka, and look whether the consumer's memory grows; for docs/performance.md
	@$(COMPARE) -compare.messages=200000 -compare.parts=soak $(if $(MESSAGES),-compare.soak=$(MESSAGES)) -compare.docs=$(CURDIR)/docs -compare.command='make bench-soak$(if $(MESSAGES), MESSAGES=$(MESSAGES))'

# PARTS=tokens,masters chooses; RECORDS=10M COMPACT=10M,100M are the tokens to be remembered.
SIZING_ARGS = $(if $(PARTS), PARTS=$(PARTS))$(if $(RECORDS), RECORDS=$(RECORDS))$(if $(COMPACT), COMPACT=$(COMPACT))
SIZING = .ci/with-servers go test -C bench -count=1 -v -timeout=0 -run='^TestSizing$$' . -sizing $(if $(PARTS),-sizing.parts='$(PARTS)') $(if $(RECORDS),-sizing.records='$(RECORDS)') $(if $(COMPACT),-sizing.compact='$(COMPACT)')

.PHONY: sizing
sizing: ## measure throughput and memory against what grows (PARTS, RECORDS, COMPACT), and write docs/sizing.md; wants 11 GB
	@$(SIZING) -sizing.docs=$(CURDIR)/docs -sizing.command='make sizing$(SIZING_ARGS)'

.PHONY: sizing-quick
sizing-quick: ## the same, too short to quote, and print it (PARTS)
	@$(SIZING) -sizing.quick -sizing.command='make sizing-quick$(SIZING_ARGS)'

.PHONY: up
up: ## start every server of docker-compose.yml, and wait until they are healthy
	@docker compose up --wait

.PHONY: down
down: ## stop them, and remove their data
	@docker compose down --volumes

.PHONY: quickstart
quickstart: ## run the example that needs nothing but Go
	@go run ./examples/quickstart

.PHONY: tidy
tidy: ## run go mod tidy in every module
	@.ci/each --all go mod tidy

.PHONY: clean
clean: ## remove .cache
	@rm -rf "$(CACHE)"
