# An index of the commands that scripts/ and cargo give; `just` lists them. Nothing here is needed to build or to run.

_default:
    @just --list --unsorted

# from a fresh clone to a certificate served over HTTPS, superseded and fallen back to
quickstart *ARGUMENTS:
    scripts/quickstart {{ARGUMENTS}}

# every check and every test
test:
    scripts/test

# what the tests and the quick start run besides our code, into .tools
setup *ARGUMENTS:
    scripts/setup {{ARGUMENTS}}

# everything in one process, in ./state, until Ctrl-C
up *ARGUMENTS:
    cargo run --release --locked -p chancery -- up --state ./state {{ARGUMENTS}}

# the tests of the whole path, or those whose names hold WORD
path WORD='':
    scripts/setup
    cargo build --locked -p chancery
    cargo test --locked -p tests --test it -- {{WORD}}

# the crash sweep, ROUNDS rounds of it: 5000 is a night
sweep ROUNDS='400':
    scripts/setup
    SWEEP_ROUNDS={{ROUNDS}} cargo test --locked -p tests --features faults --test sweep -- --nocapture

# a table of what this machine reaches, compared with the targets: --quick, --million, --only PART
bench *ARGUMENTS:
    scripts/setup
    cargo build --release --locked -p chancery -p edge -p tests --bin chancery --example names --example handshakes --example bench
    target/release/examples/bench {{ARGUMENTS}}

# formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
