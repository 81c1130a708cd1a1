# The modules with Go packages; each has its own go.mod.
MODULES := . examples bench

# Where tests leave screenshots, and where the demo keeps its data.
ARTIFACTS := $(CURDIR)/artifacts
DATA      ?= ./.photoshare
ADDR      ?= 127.0.0.1:8080

FUZZTIME  ?= 10s
BENCH     ?= .
N         ?= 300000000

.DEFAULT_GOAL := help
.PHONY: help demo test race lint fuzz bench bench-pgbounce soak proof-300m proof-fanout examples ci

# $(call each,what,command) runs a command in every module. A tool is $(call
# tool,name): pinned in tools/go.mod, out of every other go.mod.
each = set -e; for module in $(MODULES); do echo "== $(1) in $$module"; (cd $$module && $(2)); done
tool = go tool -modfile=$(CURDIR)/tools/go.mod $(1)

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do printf '  make %-15s%s\n' "$$target" "$$text"; done

demo: ## start the photo-sharing server with its own PostgreSQL, Redis and memcached
	@sh tools/setup.sh demo
	@echo building photoshare
	@cd examples && go build -o ../bin/photoshare ./photoshare
	@exec bin/photoshare up --data $(DATA) --addr $(ADDR)

test: ## all checks and all tests, against real servers that they start themselves
	@sh tools/setup.sh test
	@$(MAKE) --no-print-directory lint race

race: ## all tests under the race detector
	@mkdir -p $(ARTIFACTS) && rm -rf $(ARTIFACTS)/_artifacts
	@$(call each,tests,go test -race -shuffle=on -timeout=10m -artifacts -outputdir=$(ARTIFACTS) ./...)
	@echo "screenshots are in $(ARTIFACTS)"

lint: ## format, vet, staticcheck, tidy
	@$(call each,gofumpt,out=$$($(call tool,gofumpt) -l .) && echo -n "$$out" && test -z "$$out")
	@$(call each,vet,go vet ./...)
	@$(call each,fix,go fix -diff ./...)
	@$(call each,staticcheck,$(call tool,staticcheck) ./...)
	@$(call each,tidy,go mod tidy -diff)

fuzz: ## every fuzz test for FUZZTIME each
	@set -e; for module in . examples; do cd $(CURDIR)/$$module; \
	for file in $$(grep -l '^func Fuzz' -r --include=*_test.go --exclude-dir=examples --exclude-dir=bench .); do \
	for name in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' $$file); do \
		echo "== $$(dirname $$file) $$name"; go test -run='^$$' -fuzz="^$$name\$$" -fuzztime=$(FUZZTIME) ./$$(dirname $$file); \
	done; done; done

bench: ## the packages' benchmarks; BENCH=regexp chooses
	@sh tools/setup.sh test
	@$(call each,benchmarks,go test -run='^$$' -bench='$(BENCH)' -benchmem -timeout=30m ./...)

bench-pgbounce: ## pgbounce beside PgBouncer: throughput, latency, processor, memory; a quarter of an hour
	@sh tools/setup.sh test
	@cd bench && go run ./cmd/pgbounce -json ../docs/pgbounce.json

soak: ## pgbounce under mixed load and rolling restarts for half an hour
	@sh tools/setup.sh test
	@cd bench && go run ./cmd/pgbounce -soak 30m

proof-300m: ## N pairs, 300 million, in hashkv, and a report in docs; half an hour, 8 GB of memory
	@sh tools/setup.sh demo
	@cd bench && go run ./cmd/proof300m -n $(N) -json ../docs/hashkv-300m.json

proof-fanout: ## one post to 1 million feeds, with a worker killed on the way, and a report in docs; a minute, 1 GB
	@sh tools/setup.sh demo
	@cd bench && go run ./cmd/fanout -json ../docs/fanout-1m.json

examples: ## build the example programs and run every Example in the docs
	@$(call each,examples,go build ./... && go test -run='^Example' ./...)

ci: ## what CI runs
	@.ci/run
