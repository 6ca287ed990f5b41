# Every command a person needs. `make demo` shows the main job, `make test` runs all tests.
SHELL := /bin/bash
.DELETE_ON_ERROR:

# Debian packages that tests and benchmarks talk to; none is part of the product.
TEST_PACKAGES := smbclient python3-venv python3-samba python3-libvhdi krb5-kdc krb5-admin-server krb5-user samba samba-testsuite samba-vfs-modules qemu-utils tgt util-linux iproute2 \
  xfsprogs btrfs-progs ntfs-3g fdisk fio libiscsi-bin open-isns-server open-isns-utils libnbd-bin iptables faketime shellcheck tshark dpkg-dev binutils etcd-server etcd-client prometheus python3-prometheus-client \
  chromium nodejs seabios ovmf qemu-guest-agent busybox-static dosfstools mtools
# Node from elsewhere than Debian has npm in it, and does not go together with Debian's.
TEST_PACKAGES += $(if $(shell command -v npm || :),,npm)
# What `make demo-cluster` keeps its files on.
VOLUME_PACKAGES = $(if $(filter cephfs,$(VOLUME)),ceph-mon ceph-mgr ceph-osd ceph-mds ceph-fuse ceph-common,glusterfs-server glusterfs-client)
BUILT := $(or $(CARGO_TARGET_DIR),target)
# What `make lab` unpacks below target/lab and never installs: Debian's kernel, busybox-static, QEMU, qemu-guest-agent, fio, git, GRUB, mtools, efibootmgr.

.PHONY: help build release demo demo-failover demo-cluster cluster-soak bench-failover test api-fuzz why-drill soak fuzz interop interop-newest interop-clients interop-images iscsi-conformance lint docs-check shell-check deny msrv bench bench-growth console lab lab-soak packages needs clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## Everything, for tests
	cargo build --workspace --all-targets

release: ## The programs, optimised
	cargo build --workspace --release --bins

demo: release ## A guest on a VHDX on an SMB 3 share moves between two hosts while it writes
	target/release/demo

bench-failover: release ## What continuous availability costs; JSON under target/bench
	target/release/bench-failover

demo-failover: release ## A guest writes while its file server is killed twenty times and upgraded five times
	target/release/demo-failover

demo-cluster: release ## Two clients and two guests write while the node of three that serves them is killed, frozen, cut off, drained, upgraded (ROUNDS, 2); etcd and VOLUME (glusterfs or cephfs), as root; JSON: target/demo-cluster.json
	@missing=$$(for p in etcd-server $(VOLUME_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo -n "$$p "; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then $(MAKE) needs TEST_PACKAGES="$$missing"; \
	  else echo "run: sudo apt-get install --no-install-recommends $$missing"; exit 1; fi; fi
	target/release/demo-cluster $(or $(ROUNDS),2) $(BUILT)/demo-cluster.json $(or $(VOLUME),glusterfs)

cluster-soak: build ## Faults by a seed on a cluster while a client writes (FAULTS, 200; SEED, 2027), as root; pauses as JSON: target/cluster-soak.json
	BULKHEAD_CLUSTER_FAULTS=$(or $(FAULTS),200) BULKHEAD_CLUSTER_SEED=$(or $(SEED),2027) BULKHEAD_CLUSTER_JSON=$(abspath $(BUILT))/cluster-soak.json \
	  cargo nextest run --workspace -E 'binary(cluster_soak)' --no-capture

# A test that passes says nothing, so what is left out is written to a file.
test: needs build ## All tests
	cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest
	rm -rf $(BUILT)/debug/longest-turns $(BUILT)/debug/skipped
	BULKHEAD_SKIPPED=$${BULKHEAD_SKIPPED:-$(abspath $(BUILT))/debug/skipped} cargo nextest run --workspace --no-fail-fast
	@echo 'Longest time that a connection kept a thread of smbd, in microseconds (10000 at most on a quiet machine):'
	@cat $(BUILT)/debug/longest-turns/* | sort -rn | head -5

api-fuzz: needs build ## Schemathesis over the description of the control interface, in a folder below target (ARGS for it)
	python3 -m venv $(BUILT)/api-fuzz
	$(BUILT)/api-fuzz/bin/pip install --quiet --requirement tests/api/requirements.txt
	$(BUILT)/debug/api-fuzz $(abspath $(BUILT))/api-fuzz/bin/schemathesis $(ARGS)

why-drill: needs build ## Causes of slowness put in for real, and which of them bulkhead why names, as root; JSON: target/why-drill.json
	rm -f $(BUILT)/why-drill.lines
	BULKHEAD_WHY_JSON=$(abspath $(BUILT))/why-drill.lines cargo nextest run --workspace -E 'binary(why)' --no-fail-fast
	(echo '['; paste -sd, $(BUILT)/why-drill.lines; echo ']') > $(BUILT)/why-drill.json
	@sed -E 's/.*"named":(\[[^]]*\]).*"put_in":"([^"]*)".*/\2: \1/' $(BUILT)/why-drill.lines

console: ## The bundle of the web console, of its sources (Node 18 or newer, npm); a test holds that the tree has it
	cd console && npm ci --ignore-scripts && node_modules/.bin/tsc && node build.mjs

soak: build ## Honest and hostile clients on one server for ten minutes (BULKHEAD_SOAK_SECONDS)
	BULKHEAD_SOAK_SECONDS=$${BULKHEAD_SOAK_SECONDS:-600} cargo nextest run -p bulkhead-tests --test soak --no-capture

fuzz: ## Every fuzz target under libFuzzer on nightly Rust (FUZZ_SECONDS for each, 60)
	CARGO_TARGET_DIR=$(abspath $(BUILT)) fuzz/run.sh $(FUZZ_TARGETS)

interop: needs build ## All smbtorture suites beside Samba's counts (JSON under target/interop), and all of libiscsi's
	$(BUILT)/debug/interop
	BULKHEAD_ISCSI_FULL=1 cargo nextest run -p bulkhead-tests --test iscsi

interop-newest: needs build ## The smbtorture suites of Debian's newest Samba, and libiscsi's newest, in a folder below target/interop; as root, with debootstrap
	tests/interop/newest.sh $(BUILT)/interop/newest
	$(BUILT)/debug/interop-libiscsi $(BUILT)/interop/newest
	$(BUILT)/debug/interop --newest $(BUILT)/interop/newest

interop-clients: needs build ## SMB clients that others wrote (impacket, smbprotocol, aiosmb, rclone, pike, nmap and more) against smbd, as root (NEWEST=folder of interop-newest: libsmb2 too); JSON under target/interop
	@missing=$$(for p in rclone nmap; do command -v $$p >/dev/null || echo -n "$$p "; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	  else echo "run: sudo apt-get install --no-install-recommends $$missing"; exit 1; fi; fi
	$(BUILT)/debug/interop-clients $(if $(NEWEST),--newest $(NEWEST))

interop-images: needs build ## Disk images of ours read by programs that others wrote (dissect, libvhdi, 7-Zip, imago and more); JSON under target/interop
	@missing=$$(for p in 7zip cmake; do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo -n "$$p "; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	  else echo "run: sudo apt-get install --no-install-recommends $$missing"; exit 1; fi; fi
	$(BUILT)/debug/interop-images

iscsi-conformance: needs ## Cases of RFC 7143 on an iSCSI target (TARGET=iscsi://host:port/iqn/lun, its data are lost), else on smbd and tgt (ONLY=pattern)
	cargo build -p smbd -p bulkhead -p bulkhead-tests --bins
	$(BUILT)/debug/iscsi-conformance $(TARGET) $(if $(ONLY),--only '$(ONLY)')

lab: release ## Debian's kernel in an emulated machine: as a guest that is moved, as an SMB client, as an iSCSI initiator (SCENARIO=guest|firmware|agent|devices|cifs|failover|rdma|iscsi|special)
	tests/lab/run.sh $(BUILT)/release $(SCENARIO)

lab-soak: release ## The kernel's SMB client at random file operations for half an hour in all (BULKHEAD_LAB_SOAK: seconds for each of three mounts)
	BULKHEAD_LAB_SOAK=$${BULKHEAD_LAB_SOAK:-500} tests/lab/run.sh $(BUILT)/release cifs

lint: ## Formatting and clippy
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

docs-check: ## Documentation without a warning, also of what is private; the examples in it run
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items
	cargo test --doc --workspace --quiet

shell-check: needs ## Every shell script of the tree
	git grep -lE '^#!(/usr)?/bin/(env )?(ba)?sh|^# shellcheck shell=' | xargs shellcheck --external-sources

deny: ## Licences, doubles and sources of all dependencies (deny.toml); advisories where their database is here
	@if ! cargo deny --version >/dev/null 2>&1; then echo 'deny: not run: cargo-deny is not here (cargo install --locked cargo-deny)'; \
	elif [ -e "$${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs" ]; then cargo deny check licenses bans sources advisories --disable-fetch; \
	else echo 'deny: advisories: not run: their database is not here'; cargo deny check licenses bans sources; fi

MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv: ## The oldest Rust that Cargo.toml declares, where rustup has it
	@if rustup toolchain list 2>/dev/null | grep -q '^$(MSRV)[.-]'; then \
	  cargo +$(MSRV) check --workspace --all-targets --target-dir $(BUILT)/msrv; \
	else echo 'msrv: not run: Rust $(MSRV) is not here (rustup toolchain install $(MSRV))'; fi

packages: release ## Debian packages, in a folder that is an apt repository: target/packages
	packaging/build.sh $(BUILT)/release $(BUILT)/packages

bench: needs release ## Side by side with peers (NEWEST=folder of interop-newest: with generators of others and the newest Samba, too; BEFORE=an smbd built earlier, measured beside today's); JSON under target/bench
	$(if $(BEFORE),BULKHEAD_BEFORE=$(BEFORE) )target/release/bench-smb
	$(if $(NEWEST),target/release/bench-generators --newest $(NEWEST))
	target/release/bench-migration
	target/release/bench-disk
	target/release/bench-iscsi

bench-growth: release ## How costs grow with sessions, opens, files, watches, locks and shares; JSON and SVG under target/bench
	target/release/bench-growth

# Installs what tests and benchmarks need when root, else says what to run. Never starts Debian's own services.
needs:
	@missing=$$(for p in $(TEST_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo -n "$$p "; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    mkdir -p /usr/sbin; printf '#!/bin/sh\nexit 101\n' > /tmp/policy-rc.d.$$$$; chmod 755 /tmp/policy-rc.d.$$$$; \
	    [ -e /usr/sbin/policy-rc.d ] || { cp /tmp/policy-rc.d.$$$$ /usr/sbin/policy-rc.d; made=1; }; rm -f /tmp/policy-rc.d.$$$$; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; status=$$?; \
	    [ -z "$$made" ] || rm -f /usr/sbin/policy-rc.d; exit $$status; \
	  else echo "run: sudo apt-get install --no-install-recommends $$missing"; exit 1; fi; fi

clean: ## Remove what was built
	cargo clean
