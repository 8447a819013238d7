//! Hardening of a process that holds open keys: no core dumps, no reading by a debugger.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior,
    setrlimit,
};

/// Forbids core dumps and tracing of this process by other processes of the same user.
///
/// Sets the core size limit to zero, hard and soft, and `PR_SET_DUMPABLE` to 0, which also makes
/// `/proc/<pid>/mem` belong to root. Call it first in `main`: children inherit the limit but set
/// their own dumpable flag when they execute a program.
///
/// # Errors
/// When the kernel refuses, which a seccomp filter may make it do.
pub fn harden() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Whether [`harden`] is in force for this process.
pub fn is_hardened() -> bool {
    let core = getrlimit(Resource::Core);
    core.current == Some(0)
        && core.maximum == Some(0)
        && matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable))
}
