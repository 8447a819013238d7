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
    cargo build --locked -p chancery
    cargo test --locked -p tests --test it -- {{WORD}}

# formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
