//! The CNI plugin: configuration on stdin, `CNI_*` in the environment, result or error as JSON on stdout.

use std::process::ExitCode;

fn main() -> ExitCode {
    portolan_cni::plugin::main()
}
