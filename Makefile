# Two commands do everything: `make up` starts a box, `make test` proves it. The rest serves those
# who build Polder. Recipes stay thin: what they do is in `polder` itself and in tests/.

# What is worth keeping between runs and checkouts: the trial model, Python environments.
export CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/polder
STATE ?= .polder
# Without one, the port that the box had before; 8443 at first.
PORT  ?=

.PHONY: up test test-vm test-vm-all test-aarch64 test-gpu test-security soak bench-resilience bench-gpu lint bench bench-engine fuzz deny clean
.PHONY: tools-build tools-gpu tools-security tools-resilience tools-test tools-vm tools-aarch64 tools-cross tools-bench

up: tools-build            ## Build, fetch the default model, start the box, print where to claim it.
	cargo build --release --locked -p polder
	target/release/polder weights fetch --default --state $(STATE)
	exec target/release/polder up --state $(STATE) $(if $(PORT),--port $(PORT))

test: tools-test           ## Every test that needs no GPU.
	tests/run

test-vm: tools-vm          ## Make the OS image and boot it in a virtual machine (needs root).
	tests/vm/run

test-vm-all: tools-cross   ## Every story about the image, also on aarch64 and with the GPU driver; what did not change is not run again.
	tests/vm/all

test-aarch64: tools-aarch64 ## The CPU engine's tests on an emulated processor of the other kind.
	tests/aarch64

test-gpu: tools-gpu        ## Every kernel and model on this machine's card; without one, packs what a machine with one runs.
	POLDER_NVRTC=$(CACHE)/nvrtc/lib tests/gpu/pack $(ARCH)
	@if command -v nvidia-smi >/dev/null; then tests/gpu/on-card test && tests/gpu/on-card sanitize-if-there; \
	else echo "No card here: on a machine with one, run tests/gpu/on-card test in a copy of this folder."; fi

test-security: tools-security ## Other people's attackers against a real box: testssl.sh, sslyze, slowhttptest, h2load, schemathesis, malformed requests.
	tests/security/prepare
	tests/security/run $(TOOLS)

soak: tools-resilience     ## Mixed traffic on a real box for MINUTES (60), a fault every minute; SEED repeats one. Needs root.
	tests/resilience/prepare
	MINUTES=$(or $(MINUTES),60) SEED=$(SEED) tests/resilience/soak

bench-resilience: tools-test tools-resilience ## How long it takes when something fails, and what the parts take of memory: one table. Needs root.
	tests/resilience/prepare release
	tests/resilience/bench

bench-gpu: tools-gpu       ## Whole models of true shapes, loading, and agents beside chats, on this machine's card; VLLM=FOLDER beside vLLM.
	POLDER_NVRTC=$(CACHE)/nvrtc/lib tests/gpu/pack $(ARCH)
	@if command -v nvidia-smi >/dev/null; then \
	    tests/gpu/on-card bench && tests/gpu/on-card loading && tests/gpu/on-card replay && \
	    { [ -z "$(VLLM)" ] || { rm -rf target/beside && tests/gpu/stage-peer "$(VLLM)" target/beside && \
	        bash target/beside/beside tables && bash target/beside/beside vllm; }; }; \
	else echo "No card here: on a machine with one, run tests/gpu/on-card bench, and replay, in a copy of this folder."; fi

lint:                      ## Formatting and lints, as `make test` checks them.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

bench: tools-test tools-bench ## Polder beside its rivals, tables with ratios.
	tests/bench/run

bench-engine: tools-bench  ## Polder's engine beside llama.cpp's server, one table with ratios.
	tests/bench/engine

fuzz: tools-build          ## Fuzz every parser for SECONDS each (60 unless said); corpora grow in tests/fuzz/corpus.
	tests/fuzz/run $(or $(SECONDS),60)

deny: tools-build          ## Licences, sources and duplicate versions of everything we build on.
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny@0.20.2
	cargo deny check licenses bans sources

clean:                     ## Forget what was built. The box in $(STATE) stays.
	cargo clean

# --- what each command needs, by package name ---------------------------------------------------

# A C compiler for SQLite and the cryptography; nothing else.
tools-build:
	@command -v cc >/dev/null || tests/tools/apt build-essential
	@command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup, then run make again"; exit 1; }
	@python3 -m pip --version >/dev/null 2>&1 || tests/tools/apt python3-pip

# What compiles kernels for cards, on a machine without one.
tools-gpu: tools-build
	@tests/tools/nvrtc $(CACHE)/nvrtc

# llama.cpp's server to compare with, a UPS that is a file, a router that lets callers in, a browser and its driver, the two rival front doors, openssl to check certificates with, an authority and a DNS server
# to get certificates by, networks of one's own, what asks disks how they are, a mail server, two services that people sign in with and two apps' clients
# for it, a registry of container images, and the clients that members use.
tools-test: tools-gpu tools-bench
	@tests/tools/apt chromium chromium-driver nut-server nut-client nginx-light restic rclone caddy openssl curl python3-venv iproute2 nftables util-linux
	@tests/tools/apt pebble bind9 bind9-dnsutils smartmontools python3-aiosmtpd podman crun faketime miniupnpd-nftables docker-registry
	@command -v npm >/dev/null || tests/tools/apt nodejs npm
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
	@tests/tools/venv tests/requirements.txt $(CACHE)/venv
	@tests/tools/venv tests/clients/aider.txt $(CACHE)/venv-aider
	@tests/tools/venv tests/oidc/requirements.txt $(CACHE)/venv-oidc
	@tests/tools/npm oidc-provider@9.13.3 $(CACHE)/oidc-provider
	@tests/tools/npm openid-client@6.9.0 $(CACHE)/openid-client
	@tests/tools/npm @anthropic-ai/claude-code@2.1.332 $(CACHE)/claude-code

# Attackers, each by the name of its package; those from PyPI in environments of their own (sslyze wants an older cryptography).
tools-security: tools-build
	@tests/tools/apt testssl.sh slowhttptest nghttp2-client curl iproute2 python3-venv
	@tests/tools/venv tests/security/sslyze.txt $(CACHE)/venv-sslyze
	@tests/tools/venv tests/security/schemathesis.txt $(CACHE)/venv-schemathesis

# Networks and a disk of one's own, a UPS that is a file, a clock that can be wrong, backups, and what reads the box's database.
tools-resilience: tools-build
	@tests/tools/apt faketime nut-server nut-client iproute2 nftables e2fsprogs mount restic python3

# What sets up the room in which images are made; everything else comes from the lock.
tools-vm: tools-test
	@tests/tools/apt mmdebstrap debian-archive-keyring util-linux dpkg

# What compiles for the other kind of machine, and what runs its programs.
tools-aarch64: tools-build
	@tests/tools/apt gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
	@rustup target list --installed | grep -qx aarch64-unknown-linux-gnu || rustup target add aarch64-unknown-linux-gnu

# The emulators of whole machines come from the lock.
tools-cross: tools-vm tools-aarch64
	@tests/tools/apt openssh-client

# What builds llama.cpp's server, and that server.
tools-bench: tools-build
	@command -v cmake >/dev/null || tests/tools/apt cmake
	@command -v g++ >/dev/null || tests/tools/apt g++
	@tests/tools/llama-server $(CACHE)/llama-server
