# On a fresh machine each of these sets up what it needs: Rust, a C++ compiler and python3 with pip are all it takes.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lorabooth
export LORABOOTH_PYTHON ?= $(CACHE)/venv/bin/python
export LORABOOTH_TOOLS ?= $(CACHE)/packaging

.PHONY: setup build test reference browser demo serve bench dist

setup:            ## libtorch into .libtorch (or LIBTORCH)
	@setup/libtorch.sh

build: setup      ## target/release/lorabooth
	cargo build --release

reference:        ## the Python libraries that tests and benchmarks compare with, in a venv outside the tree
	@setup/reference.sh "$(LORABOOTH_PYTHON)"

browser:          ## Chromium, in which the page is tested
	@setup/browser.sh

test: setup reference browser
	cargo test --release

demo: build       ## DreamBooth on the model and the photos inside the binary: minutes, no download
	target/release/lorabooth demo

serve: build      ## the page in a browser: photos to adapter, offline, on the model inside the binary
	target/release/lorabooth serve

bench: build reference ## speed and memory beside PEFT's loop, on this machine; writes nothing
	tests/measured/bench.sh

dist: build       ## dist/: a folder as .tar.zst that runs anywhere, and a wheel that runs on an installed PyTorch
	packaging/dist.sh target/release/lorabooth dist
