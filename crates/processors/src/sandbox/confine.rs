//! Confines this process, before it sees a byte of others: bytes that take over a parser, and templates that take over what
//! runs them, reach no file, no network, no process and no secret.
//!
//! What a system lacks is left out and named; the rest holds. On Linux: Landlock (no files, no network, no signals), seccomp
//! (no system call but those for memory, its own threads and the files that are open), no new privileges, no capabilities.
//! On every Unix: nothing more can be opened and no file written. Memory and computing are limited by whoever starts it.
//!
//! All of it is set in the only thread there is, so that each thread that starts later has it from its beginning.

/// What this system lacks of a confinement: the part, and why.
pub(super) type Missing = Vec<(&'static str, String)>;

/// Confines this process for good. It must have one thread only.
#[cfg(unix)]
pub(super) fn confine() -> Missing {
    let mut missing = Missing::new();
    let mut part = |name, done: Result<(), String>| missing.extend(done.err().map(|reason| (name, reason)));
    #[cfg(target_os = "linux")]
    {
        part("capabilities", linux::drop_capabilities());
        part("end with the parent", linux::end_with_parent());
        part("Landlock", linux::no_files());
    }
    // Landlock needs a file of its own to be set up.
    part("limits", limits());
    #[cfg(target_os = "linux")]
    part("seccomp", linux::few_calls());
    #[cfg(not(target_os = "linux"))]
    part("Landlock and seccomp", Err("only Linux has them".to_owned()));
    missing
}

/// Confines this process as far as this system can, which is not at all.
#[cfg(not(unix))]
pub(super) fn confine() -> Missing {
    vec![("everything", "this system has nothing that is known here".to_owned())]
}

/// Nothing more can be opened, nothing written to a file, no memory dumped.
#[cfg(unix)]
fn limits() -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};

    let none = Rlimit { current: Some(0), maximum: Some(0) };
    for resource in [Resource::Nofile, Resource::Fsize, Resource::Core] {
        setrlimit(resource, none).map_err(|error| format!("{resource:?}: {error}"))?;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr as _, RulesetStatus,
        Scope,
    };
    use rustix::process::{Signal, set_parent_process_death_signal};
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

    /// What the kernel is asked for; an older one gives what it has.
    const LANDLOCK: ABI = ABI::V6;

    /// The administrator of a machine is one without capabilities. No program that it starts has more than it.
    pub(super) fn drop_capabilities() -> Result<(), String> {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).map_err(|error| error.to_string())?;
        set_no_new_privs(true).map_err(|error| error.to_string())
    }

    pub(super) fn end_with_parent() -> Result<(), String> {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| error.to_string())
    }

    /// No file, no address and no process outside can be reached; what is open stays open.
    pub(super) fn no_files() -> Result<(), String> {
        let restricted = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(LANDLOCK)))
            .and_then(|rules| rules.scope(Scope::from_all(LANDLOCK)))
            .and_then(Ruleset::create)
            .and_then(landlock::RulesetCreated::restrict_self);
        let status = restricted.map_err(|error| error.to_string())?;
        match (status.ruleset, status.landlock) {
            (RulesetStatus::FullyEnforced, _) => Ok(()),
            (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
                let version = effective_abi as i32;
                Err(format!(
                    "the kernel has version {version} of it, which lacks some of version 6 (Linux 6.12)"
                ))
            }
            (RulesetStatus::PartiallyEnforced, _) => Err("the kernel has some of it only".to_owned()),
            (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
                Err("the kernel was started without it (`lsm=` on its command line)".to_owned())
            }
            (RulesetStatus::NotEnforced, _) => Err("the kernel has none; Linux 5.13 brought it".to_owned()),
        }
    }

    /// Every system call but a few fails as if the kernel did not have it.
    pub(super) fn few_calls() -> Result<(), String> {
        super::calls::allow_few()
    }
}

#[cfg(all(
    target_os = "linux",
    not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))
))]
mod calls {
    pub(super) fn allow_few() -> Result<(), String> {
        Err(format!("the system calls of {} are not known here", std::env::consts::ARCH))
    }
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
mod calls {
    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    pub(super) fn allow_few() -> Result<(), String> {
        let filter = filter().map_err(|error| error.to_string())?;
        seccompiler::apply_filter(&filter).map_err(|error| error.to_string())
    }

    fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
        let always = [
            // What is open.
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_pread64,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_close,
            libc::SYS_fstat,
            // Memory.
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_madvise,
            libc::SYS_brk,
            libc::SYS_getrandom,
            // Its own threads, and its own signals.
            libc::SYS_futex,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sigaltstack,
            libc::SYS_restart_syscall,
            libc::SYS_getpid,
            libc::SYS_getppid,
            libc::SYS_gettid,
            // Time, and the end.
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_exit,
            libc::SYS_exit_group,
        ];
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = always.map(|call| (call, Vec::new())).into();
        let without = |argument, bits: i32| argument_is(argument, SeccompCmpOp::MaskedEq(bits as u64), 0);
        // Memory that is not run as a program.
        rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![without(2, libc::PROT_EXEC)?])?]);
        rules.insert(libc::SYS_mprotect, vec![SeccompRule::new(vec![without(2, libc::PROT_EXEC)?])?]);
        // Threads, and no process. The flags of clone3 cannot be looked at: without it, clone is used.
        let thread = libc::CLONE_THREAD as u64;
        let is_thread = argument_is(0, SeccompCmpOp::MaskedEq(thread), thread)?;
        rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
        // A signal to itself, as abort sends one.
        let own = argument_is(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?;
        rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![own])?]);
        let refused = SeccompAction::Errno(libc::ENOSYS as u32);
        let arch = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()
    }

    fn argument_is(
        number: u8,
        how: SeccompCmpOp,
        value: u64,
    ) -> Result<SeccompCondition, seccompiler::BackendError> {
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, how, value)
    }
}
