# weft: `make demo` shows it, `make test` proves it.

SHELL   := /bin/sh
PREFIX  ?= /usr/local
CNI_BIN ?= /opt/cni/bin
DESTDIR ?=
CNI_LINKS ?=
CARGO   ?= cargo
HOST    := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# Only root may make network namespaces.
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)

WEFT    := target/release/weft
PLUGIN  := target/release/weft-cni

.PHONY: help demo test interop bench soak lint build plugin install deps

help:
	@echo 'make demo     install what is missing, build, and show the fabric at work'
	@echo 'make test     the same for the whole test suite: format, lints, licences, every test'
	@echo 'make interop  FLANNELD=/path CNI_BIN=/dir CNITOOL=/path: tests beside a real flanneld, its plugins and libcni'
	@echo 'make bench    print the figures: plans, kernel batches, containers'
	@echo 'make soak     MINUTES=30 SEED=1: four nodes under churn, faults and traffic, and what was lost;'
	@echo '              OUTAGE=60: the same with the store away for an hour'
	@echo 'make lint     format, clippy and cargo-deny alone'
	@echo 'make build    target/release/weft and a static target/release/weft-cni'
	@echo 'make install  PREFIX=$(PREFIX) CNI_BIN=$(CNI_BIN) DESTDIR=$(DESTDIR)'
	@echo "              CNI_LINKS='bridge portmap': further plugins of CNI_BIN that weft-cni is to stand for"

deps:
	@deploy/install-deps.sh build

build: deps
	$(CARGO) build --release --locked -p weft
	$(MAKE) --no-print-directory plugin

# The plugin is linked statically, by itself: with --target, build scripts and
# procedural macros keep the default flags. Its target folder is cargo's own
# for that triple, so nothing is built twice.
plugin:
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --locked -p weft-cni --profile plugin --target $(HOST)
	@mkdir -p target/release
	install -m 755 target/$(HOST)/plugin/weft-cni $(PLUGIN)

demo: build
	@$(SUDO) $(WEFT) demo $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p weft --no-default-features -- -D warnings
	$(CARGO) deny --all-features check bans licenses sources

test:
	@deploy/install-deps.sh test
	$(MAKE) --no-print-directory lint plugin
	$(CARGO) build --locked --workspace
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" $(CARGO) test --locked --workspace --no-fail-fast

# FLANNELD is flannel's daemon; CNI_BIN a folder with its plugin `flannel` and all
# of the reference plugins; CNITOOL libcni's own program. RECORD=1 writes
# tests/golden/flanneld and the plugins' recordings anew instead of holding
# flanneld and the plugins to them.
interop:
	@for file in "$(FLANNELD)" "$(CNITOOL)" $(addprefix "$(CNI_BIN)"/,flannel bridge host-local portmap bandwidth firewall tuning loopback); do \
		[ -x "$$file" ] || { echo "make interop FLANNELD=/path CNI_BIN=/dir CNITOOL=/path: '$$file' is not a program" >&2; exit 1; }; \
	done
	@deploy/install-deps.sh test
	$(CARGO) build --locked --workspace
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "FLANNELD=$(abspath $(FLANNELD))" "CNI_BIN=$(abspath $(CNI_BIN))" "CNITOOL=$(abspath $(CNITOOL))" "RECORD=$(RECORD)" \
		$(CARGO) test --locked -p weft --features interop --test interop -- --nocapture $(ARGS)
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "CNI_BIN=$(abspath $(CNI_BIN))" "RECORD=$(RECORD)" \
		$(CARGO) test --locked -p weft-cni --features interop --test reference interop -- --nocapture $(ARGS)

# With the reference plugins in CNI_BIN, the figures of theirs as well.
bench: build
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "CNI_BIN=$(abspath $(CNI_BIN))" $(CARGO) bench --locked --workspace

soak: build
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "OUTAGE=$(or $(OUTAGE),0)" "MINUTES=$(or $(MINUTES),30)" "SEED=$(or $(SEED),1)" \
		$(CARGO) bench --locked -p weft --bench soak

install: build
	install -D -m 755 $(WEFT) $(DESTDIR)$(PREFIX)/bin/weft
	ln -sf weft $(DESTDIR)$(PREFIX)/bin/weftd
	install -D -m 755 deploy/mk-docker-opts.sh $(DESTDIR)$(PREFIX)/bin/mk-docker-opts.sh
	install -D -m 755 $(PLUGIN) $(DESTDIR)$(CNI_BIN)/weft-cni
	ln -sf weft-cni $(DESTDIR)$(CNI_BIN)/weft
	[ -e $(DESTDIR)$(CNI_BIN)/flannel ] || ln -s weft-cni $(DESTDIR)$(CNI_BIN)/flannel
	@cd $(DESTDIR)$(CNI_BIN) && for name in $(CNI_LINKS); do \
		if [ -e $$name ] && [ ! -L $$name ]; then mv -v $$name $$name.before-weft; fi; \
		ln -sf weft-cni $$name; \
	done
	install -D -m 644 deploy/weft.service $(DESTDIR)/usr/lib/systemd/system/weft.service
	install -D -m 644 deploy/docker.service.d/weft.conf $(DESTDIR)$(PREFIX)/share/weft/docker.service.d/weft.conf
	install -D -m 644 deploy/10-weft.conflist $(DESTDIR)/etc/cni/net.d/10-weft.conflist
