# Each target does its own set-up on a bare Debian 12 or 13 (as root): first it says what it installs and how long that
# takes. The cluster is for Debian 12 alone.
#
#   LATEBIND_STATE   where containers and images are kept (default /var/lib/latebind-host)
#   REGISTRY         where `push` takes the images: host[:port][/path]; TAG is their tag, INSECURE=1 leaves TLS out
#   TARGET           x86_64-unknown-linux-musl (default) or aarch64-unknown-linux-musl: what `build` and `images` build
#                    for; the latter into dist/aarch64/
#   ON               kind, k3s, microshift or current: where `first-record` gets its cluster
#   RECIPE           debian or rustup: how static binaries are built (default: rustup if it has the musl target)

.PHONY: help build install images push archive demo demo-cluster demo-condor test test-condor test-v2 test-aarch64
.PHONY: first-record test-cluster cluster cluster-down attack-start bench bench-cluster fuzz soak audit clean

# Checked before anything is built, which takes minutes.
ifneq ($(filter push,$(MAKECMDGOALS)),)
ifeq ($(REGISTRY),)
$(error REGISTRY is not set: make images push REGISTRY=registry.example.org/me)
endif
endif

help:
	@echo 'make demo          several jobs, each in another image, one after the other; each result is proven'
	@echo 'make demo-cluster  the same on Kubernetes: on a cluster of one node, made and stopped here (Debian 12)'
	@echo 'make demo-condor   six jobs, each in another image, in an HTCondor pool that is made and ended here'
	@echo 'make build         static binaries in dist/: glue, watcher, latebind-host'
	@echo 'make images        the images of demo and tests, made here without a registry'
	@echo 'make push          pushes the images of pilot and glue: make push REGISTRY=registry.example.org/me'
	@echo 'make archive       the same images as files in dist/images, for kind, minikube and ctr'
	@echo 'make first-record  from nothing to one record on Kubernetes: ON=kind, k3s, microshift, or current with REGISTRY='
	@echo 'make install       programs, the unit of a pod, manual pages, completions: PREFIX=/usr/local, DESTDIR='
	@echo 'make test          format, lints, documentation, dependencies, unit tests, integration tests on real containers'
	@echo 'make test-cluster  the tests on Kubernetes: on a cluster of one node, made and stopped here; or on yours, if'
	@echo '                   KUBECONFIG and LATEBIND_REGISTRY are both set'
	@echo 'make test-condor   the tests on an HTCondor pool, made and ended here: 23.9 of Debian trixie; CONDOR=sid: 25.x'
	@echo 'make test-v2       demo and tests on control groups v2: machines of Debian 13 and 12, booted here as'
	@echo '                   ordinary programs'
	@echo 'make test-aarch64  what is built for aarch64, under an emulator'
	@echo 'make cluster       that cluster with the images in its registry, left running; make cluster-down stops it'
	@echo 'make attack-start  N tries (100000) to catch a process of a start, as the job and as another process of its UID'
	@echo 'make soak          kills parts of pods at random for DURATION seconds (600): no job lost, none reported twice'
	@echo 'make bench         what late binding costs, side by side with a shell loop, tini and dumb-init; draws it into'
	@echo '                   docs/'
	@echo 'make bench-cluster jobs a second in place on that cluster, which is made and stopped here unless it runs'
	@echo 'make fuzz          feeds the parsers with generated input, each for SECONDS seconds (60); TARGETS chooses some'
	@echo 'make audit         what runs as root in the payload container, in reading order, counted'
	@echo 'make clean         removes dist/ and target/; says how to remove images, containers and the cache too'

build:
	@.ci/setup.sh build
	@.ci/build.sh

install: export PREFIX := $(or $(PREFIX),/usr/local)
install: build
	@DESTDIR='$(DESTDIR)' .ci/install.sh

images:
	@.ci/setup.sh build images
	@.ci/build.sh
	@images/build.sh

# Prerequisites, and not an order on the command line: that would mean nothing to make -j.
push: images
	@images/publish.sh push

archive: images
	@images/publish.sh archive

first-record:
	@.ci/setup.sh build images
	@.ci/build.sh
	@images/build.sh glue pilot busybox debian
	@images/publish.sh archive glue pilot busybox
	@deploy/first-record.sh '$(ON)'

demo:
	@.ci/setup.sh build images demo
	@.ci/build.sh
	@images/build.sh
	@tests/demo/run.sh

demo-cluster:
	@.ci/setup.sh build images demo
	@tests/cluster/install.sh
	@.ci/build.sh
	@images/build.sh glue pilot busybox debian noshell liar-shell
	@tests/demo/run.sh cluster

demo-condor:
	@.ci/setup.sh build images demo
	@.ci/build.sh
	@images/build.sh glue pilot busybox debian noshell liar-shell htcondor-pilot
	@tests/demo/condor.sh

# Storage of their own: tests run in a PID namespace of their own, and podman believes that containers of another one
# ended.
test test-cluster test-v2 test-aarch64 cluster: export LATEBIND_STATE := $(or $(LATEBIND_STATE),/var/lib/latebind-test)
test:
	@.ci/setup.sh build images demo test
	@.ci/build.sh
	@images/build.sh
	@.ci/test.sh

test-cluster:
	@.ci/setup.sh build images test
	@.ci/build.sh
	@images/build.sh
	@images/build.sh htcondor-pilot
	@.ci/test-cluster.sh

# Storage of their own for these too, since they run in the machine's own PID namespace.
test-condor demo-condor: export LATEBIND_STATE := $(or $(LATEBIND_STATE),/var/lib/latebind-condor)
test-condor:
	@.ci/setup.sh build images test
	@.ci/build.sh
	@images/build.sh glue busybox debian noshell liar-shell passwd-link pilot htcondor-pilot
	@.ci/test-condor.sh

test-v2:
	@.ci/setup.sh build images test v2
	@.ci/build.sh
	@images/build.sh
	@.ci/test-v2.sh

# For both architectures: what is said of the other one is tried with real programs.
test-aarch64:
	@.ci/setup.sh build images test
	@.ci/build.sh
	@images/build.sh
	@TARGET=aarch64-unknown-linux-musl .ci/setup.sh build
	@TARGET=aarch64-unknown-linux-musl .ci/build.sh
	@TARGET=aarch64-unknown-linux-musl images/build.sh
	@.ci/test-aarch64.sh

cluster:
	@.ci/setup.sh build images
	@.ci/build.sh
	@images/build.sh
	@tests/cluster/all.sh

cluster-down:
	@tests/cluster/down.sh

attack-start: export LATEBIND_STATE := $(or $(LATEBIND_STATE),/var/lib/latebind-test)
attack-start:
	@.ci/setup.sh build images test
	@.ci/build.sh
	@images/build.sh glue busybox
	@tests/attack-start.sh "$(or $(N),100000)"

soak: export LATEBIND_STATE := $(or $(LATEBIND_STATE),/var/lib/latebind-test)
soak:
	@.ci/setup.sh build images test
	@.ci/build.sh
	@images/build.sh
	@tests/soak.sh "$(or $(DURATION),600)"

fuzz:
	@.ci/setup.sh fuzz
	@tests/fuzz/run.sh fuzz $(or $(SECONDS),60) $(TARGETS)

bench:
	@.ci/setup.sh build images bench
	@.ci/build.sh
	@images/build.sh glue busybox
	@tests/bench/run.sh

bench-cluster: export LATEBIND_STATE := $(or $(LATEBIND_STATE),/var/lib/latebind-test)
bench-cluster:
	@.ci/setup.sh build images test
	@.ci/build.sh
	@images/build.sh
	@tests/bench/cluster.sh

audit:
	@.ci/setup.sh build
	@glue/audit.sh

clean:
	rm -rf dist target
	@echo 'not removed: $${LATEBIND_STATE:-/var/lib/latebind-host}: containers and images (images/podman system reset)'
	@echo '             $${XDG_CACHE_HOME:-~/.cache}/latebind: the Debian archive and tools'
	@echo '             $${XDG_CACHE_HOME:-~/.cache}/latebind-cluster: the cluster (make cluster-down first)'
