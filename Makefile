# Sallyport. "make help" lists the targets.

LAB_TOOLS = iptables=iptables nft=nftables ip=iproute2 ipset=ipset conntrack=conntrack curl=curl git=git sysctl=procps gcc=build-essential
PACKAGE_TOOLS = go=golang dpkg-deb=dpkg debootstrap=debootstrap systemd-nspawn=systemd-container lintian=lintian mandoc=mandoc \
	systemd-analyze=systemd ip=iproute2 nsenter=util-linux
LINT      = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
# Tests that need root, the lab and a systemd of their own fail, rather than skip, when root runs them.
ifeq ($(shell id -u),0)
LAB_ENV   = SALLYPORT_LAB=required SALLYPORT_PACKAGE=required
TEST_TOOLS = $(LAB_TOOLS) $(PACKAGE_TOOLS)
PASSED    = vet, unit, kernel, lab and package tests passed
else
TEST_TOOLS = $(LAB_TOOLS)
PASSED    = vet and unit tests passed; those of the kernel and the lab need root and were skipped
endif

run: build ## serve the built-in demo: no cluster, no root
	bin/sallyport demo

build: ## bin/sallyport
	@.ci/deps go=golang
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -o bin/sallyport ./cmd/sallyport

test: test-deps lab-build vet ## all tests, the lab's and the package's included
	PATH="$$PWD/.cache:$$PATH" $(LAB_ENV) go test -race -timeout 30m ./...
	@echo "make test: $(PASSED)"

unit: ## the tests that need neither root nor the lab
	go test -race $$(go list ./... | grep -v /bench/)

check: vet lint ## what a change must pass beside the tests
	go mod tidy -diff

vet:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...

lint: ## golangci-lint with .golangci.yml
	go run $(LINT) run

golden: ## accept what the code now renders as the golden files (then read the diff)
	go test ./rules/iptables ./rules/nftables ./watcher/translate ./cmd/sallyport/explain -update

bench: ## Go benchmarks: translation, rules, route table, proxy
	go test -run '^$$' -bench . -benchmem ./...

lab: deps lab-build ## a real cluster in network namespaces; stays until Ctrl-C
	go run ./bench/lab up

lab-build:
	go run ./bench/lab build

deps:
	@.ci/deps $(LAB_TOOLS)

test-deps:
	@.ci/deps $(TEST_TOOLS)
	@.ci/promtool .cache

deb: ## bin/sallyport_VERSION_ARCH.deb, the Debian package
	@.ci/deps go=golang git=git dpkg-deb=dpkg
	@mkdir -p bin
	deploy/debian/build bin

package-test: ## the package on a Debian of its own: restarts under load, kill, upgrade, purge; needs root
	@.ci/deps $(PACKAGE_TOOLS)
	SALLYPORT_PACKAGE=required go test -count=1 -timeout 20m ./bench/package

bench-l4: ## L4 beside real kube-proxies, into bench/results; root, 20 minutes and a machine with nothing else to do
	@.ci/deps $(LAB_TOOLS)
	go run ./bench/l4

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: run build test unit check vet lint golden bench lab lab-build deps test-deps deb package-test bench-l4 help
.DEFAULT_GOAL := help
