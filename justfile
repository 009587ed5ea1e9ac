set positional-arguments
set shell := ["bash", "-euc"]

# Lists the recipes.
default:
    @{{ just_executable() }} --list --unsorted

# Runs all tests, or those whose names contain one of these.
test *NAMES:
    tests/run "$@"

# Runs every check of a change: format, lints, docs, examples, fuzz targets and tests.
ci:
    .ci/run

# Checks the format and the lints, without tests.
lint:
    .ci/lint

# Builds the API documentation; warnings are errors.
docs:
    .ci/docs

# Runs one benchmark (archive, file, layers, migrate, mongodb, postgres, redis), such as `just bench file get`.
bench NAME *ARGUMENTS:
    cargo bench --features full --bench "$1" -- "${@:2}"

# Builds the fuzz targets and runs each (5000 runs), such as `just fuzz 60s config`.
fuzz *ARGUMENTS:
    fuzz/run "$@"

# Counts the instructions of each call of the backends without a server, with valgrind.
instructions:
    cargo run --release --quiet --package instructions
