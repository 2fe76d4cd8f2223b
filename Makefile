# On a fresh machine each of these sets up what it needs: Rust, a C++ compiler and python3 with pip are all it takes.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lorabooth
export LORABOOTH_PYTHON ?= $(CACHE)/venv/bin/python

.PHONY: setup build test reference demo bench

setup:            ## libtorch into .libtorch (or LIBTORCH)
	@setup/libtorch.sh

build: setup      ## target/release/lorabooth
	cargo build --release

reference:        ## the Python libraries that tests and benchmarks compare with, in a venv outside the tree
	@setup/reference.sh "$(LORABOOTH_PYTHON)"

test: setup reference
	cargo test --release

demo: build reference ## trains and draws with a small model of random weights: shows the tool, not a likeness
	@rm -rf lorabooth-demo && mkdir lorabooth-demo
	cd tests/reference && "$(LORABOOTH_PYTHON)" models.py "$(CURDIR)/lorabooth-demo/model" '{"variant": "tiny4"}'
	cd tests/reference && "$(LORABOOTH_PYTHON)" sample_photos.py "$(CURDIR)/lorabooth-demo/photos" '{"count": 5}'
	target/release/lorabooth train dreambooth --model lorabooth-demo/model --instance-data-dir lorabooth-demo/photos \
	  --instance-prompt "a photo of sks dog" --resolution 128 --train-text-encoder --max-train-steps 100 \
	  --output-dir lorabooth-demo/adapter
	target/release/lorabooth generate --model lorabooth-demo/model --lora lorabooth-demo/adapter \
	  --prompt "a photo of sks dog" --output lorabooth-demo/image.png

bench: build reference ## speed and memory beside PEFT's loop, on this machine; writes nothing
	tests/measured/bench.sh
