# Two targets do everything: `make appliances` builds the images into out/,
# `make test` passes the tests. Both need Linux, Go and make; `make test` installs
# the outside judges it needs (QEMU, squashfs-tools, …) where it may.

GO      ?= go
OUT     ?= out
FORMATS ?= qcow2,ova
# A test process may use both cores; boots run two machines at a time.
TEST_TIMEOUT ?= 60m

.PHONY: appliances test unit bench long drill fuzz lint setup clean help

help:
	@sed -n 's/^## //p' Makefile

## make appliances   build every role into out/ (FORMATS=qcow2,ova,vmdk,raw, OUT=dir)
appliances: bin/slipway
	bin/slipway build --all --format $(FORMATS) --output $(OUT)

## make test         everything: lint, unit tests, outside judges, boots under QEMU
test: setup lint bin/slipway
	qemu-tests/run-all

## make unit         what needs no image and no virtual machine
unit: lint
	$(GO) test $$($(GO) list ./... | grep -v /qemu-tests/)

## make bench        figures, side by side with mkosi and mmdebstrap, aptly and skopeo
bench: setup bin/slipway
	$(GO) run ./cmd/bench

## make fuzz         every fuzz target for FUZZTIME (default 30s each)
fuzz:
	qemu-tests/fuzz-all $(or $(FUZZTIME),30s)

## make long         the cluster stories that take hours: two sites, desktops in a browser, orders of power-on with figures, upgrades, nodes that come and go, a site that installs from carried media; STORY=TestVDIPair for one, what they leave behind is in OUT/test
long: export SLIPWAY_TEST_OUT ?= $(abspath $(OUT))/test
long: bin/slipway
	@qemu-tests/setup long
	qemu-tests/run-long $(STORY)

DRILL_CLUSTER ?= examples/postgres-ha/cluster.yaml
DRILL_ROUNDS  ?= 10
DRILL_SEED    ?= 1
DRILL_FAULTS  ?= $(shell bin/slipway drill --list | awk 'NR > 1 {print $$1}')

## make drill        every fault DRILL_ROUNDS=10 times on DRILL_CLUSTER, a report for each in OUT/drill; goes on where it was interrupted
drill: setup bin/slipway
	$(MAKE) appliances FORMATS=qcow2
	@mkdir -p $(OUT)/drill
	@failed=; for fault in $(DRILL_FAULTS); do \
		page=$(OUT)/drill/$$fault.html; \
		if [ -e $$page ]; then \
			echo "drill: $$page is there already"; \
			grep -q '"outcome": "held"' $(OUT)/drill/$$fault.json || failed="$$failed $$fault"; continue; \
		fi; \
		bin/slipway drill $(DRILL_CLUSTER) --images $(OUT) --fault $$fault --rounds $(DRILL_ROUNDS) --seed $(DRILL_SEED) \
			--report $$page --history $(OUT)/drill/$$fault.jsonl --json > $(OUT)/drill/$$fault.json; \
		status=$$?; [ $$status -eq 130 ] && exit 130; [ $$status -eq 0 ] || failed="$$failed $$fault"; \
	done; [ -z "$$failed" ] || { echo "drill: did not hold:$$failed"; exit 1; }

lint:
	@fmt=$$(gofmt -l cmd builder examples firstboot internal qemu-tests); [ -z "$$fmt" ] || { echo "gofmt: $$fmt"; exit 1; }
	$(GO) vet ./...
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/slipway # assembling is for other systems too
	$(GO) vet -tags long ./qemu-tests/boot ./qemu-tests/cluster ./qemu-tests/desktops ./qemu-tests/drill/native ./firstboot/role/database ./builder/mirror ./qemu-tests/build ./firstboot/role/swarm ./examples/vdi-dispatchers/service

setup:
	@qemu-tests/setup

# The Go toolchain knows what changed; make need not.
.PHONY: bin/slipway
bin/slipway:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/slipway ./cmd/slipway

clean:
	rm -rf bin out
